"""The torch environments that are there, one file each. Importing this package registers them."""

from tasks.torch_envs.acrobot import Acrobot
from tasks.torch_envs.cartpole import CartPole
from tasks.torch_envs.pendulum import Pendulum
from tasks.torch_envs.point_mass import PointMass
from tasks.torch_envs.quadcopter import Quadcopter

__all__ = ["Acrobot", "CartPole", "Pendulum", "PointMass", "Quadcopter"]
