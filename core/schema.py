"""Every valid key of a config: its type and its meaning. Data only; `core/validate.py` walks it.

The tables below `train.params` hold each key that rl_games 1.6.5 reads. Keys that its stock YAMLs carry but nothing reads
are marked `unread`: accepted, so that those files run unchanged, and reported by `core.validate.unread`.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from core import registry

Section = dict[str, "Key"]


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. `type` is an annotation that pydantic checks, or says what stands below: a section, `[section]` for a list
    of them, or a function from the mapping found there to its section (None: anything goes)."""

    type: Any
    meaning: str
    required: bool = False
    nullable: bool = False  # a section that may be left empty; for a value, write `| None` in its type
    read: bool = True
    stands_for: str | None = None  # the key of this section that this is another name of
    words: tuple[str, ...] = ()  # what may stand in place of a section


def unread(meaning: str = "read by nothing in rl_games 1.6.5") -> Key:
    return Key(Any, meaning, read=False)


def _limit(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("valid are -1 (no limit) and 1 or more")
    return value


Number = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Limit = Annotated[int, AfterValidator(_limit)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, Field(min_length=1)]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
OneOrMany = Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Free = dict[str, Any]


def _none_as_text(value: Any) -> Any:
    """rl_games writes 'None' for the identity; a YAML null means the same."""
    return "None" if value is None else value


def _off_as_text(value: Any) -> Any:
    """YAML 1.1 reads `off` as false and `on` as true."""
    return {False: "off", True: "online"}[value] if isinstance(value, bool) else value


Activation = Annotated[
    Literal["relu", "tanh", "sigmoid", "elu", "selu", "swish", "gelu", "softplus", "None"], BeforeValidator(_none_as_text)
]
Normalization = Literal["layer_norm", "batch_norm", "None"] | None
Schedule = Literal["adaptive", "linear", "identity", "constant", "fixed", "none", "None", "polynom_decay"] | None

# ---- root -----------------------------------------------------------------------------------------------------------

PLAYER: Section = {
    "games_num": Key(Count, "episodes of an evaluation"),
    "deterministic": Key(bool, "take the most likely action instead of sampling"),
    "num_envs": Key(Count | None, "environments of an evaluation; null: chosen from games_num and num_envs"),
    "seed": Key(Seed | None, "seed of an evaluation; null: the run's"),
}

ROOT: Section = {
    "seed": Key(Seed | None, "seed of everything random; null: train.params.seed, else 42"),
    "num_envs": Key(Count | None, "environments stepped together; null: train.params.config.num_actors, else task.num_envs"),
    "max_frames": Key(Limit | None, "stop after this many environment steps; -1: no limit; null: as the train config says"),
    "max_epochs": Key(Limit | None, "stop after this many epochs; -1: no limit; null: as the train config says"),
    "device": Key(Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")], "auto, cpu, cuda or cuda:N"),
    "checkpoint": Key(Text | None, "weights to start from, or with test=True to evaluate"),
    "test": Key(bool, "evaluate instead of training"),
    "info": Key(bool, "say what the task is instead of training"),
    "resume": Key(Text | None, "run directory to go on with"),
    "run_dir": Key(Text | None, "this run's directory; null: made under runs_dir"),
    "runs_dir": Key(Text, "where run directories are made"),
    "experiment": Key(Text | None, "name of the run directory in place of <Task>_<Algo>"),
    "file": Key(Text | None, "an rl_games YAML in place of the train group"),
    "sigma": Key(Number | None, "log standard deviation to set after loading, as rl_games' --sigma does"),
    "wandb": Key(Annotated[Literal["off", "offline", "online"], BeforeValidator(_off_as_text)], "Weights & Biases"),
    "wandb_project": Key(Text, "its project"),
    "wandb_entity": Key(Text | None, "its user or team"),
    "wandb_group": Key(Text | None, "its group"),
    "wandb_job_type": Key(Text | None, "its job type"),
    "wandb_tags": Key(OneOrMany, "its tags"),
    "player": Key(PLAYER, "how evaluation plays"),
    "record": Key(Text | None, "with test=True: demonstration file (.npz) to write the counted episodes to"),
    "video": Key(bool, "record the evaluation as mp4"),
    "video_episodes": Key(Count, "episodes to record"),
    "modules": Key(OneOrMany, "modules (package.module or a .py file) to import before names are looked up"),
    "observers": Key(OneOrMany, "registered observers to add"),
    "progress": Key(
        Annotated[Literal["auto", "bar", "lines", "off"], BeforeValidator(lambda v: "off" if v is False else v)],
        "progress display; auto: a bar on a terminal, lines elsewhere",
    ),
    "pause_at": Key(Count | None, "end this invocation after this many frames, to go on later; schedules run over max_frames all the same"),
    "save_interval": Key(NonNegative, "seconds between writes of nn/last.pth"),
    "torch_deterministic": Key(bool, "deterministic kernels only; slower"),
    "precision": Key(Literal["fp32", "bf16"] | None, "bf16: networks compute in bfloat16; null: as the train config says"),
    "profile": Key(bool, "write where an epoch's time goes"),
}

# ---- network --------------------------------------------------------------------------------------------------------

INITIALIZERS: dict[str, Section | None] = {
    "default": None,  # rl_games drops whatever stands beside it
    "const_initializer": {
        "val": Key(Number, "the constant", required=True),
        "value": Key(Number, "its name in older stock YAMLs", stands_for="val"),
    },
    "orthogonal_initializer": {"gain": Key(Number, "scale of the matrix")},
    "orthogonal": {"gain": Key(Number, "scale of the matrix")},
    "glorot_normal_initializer": {"gain": Key(Number, "scale of the weights")},
    "glorot_uniform_initializer": {"gain": Key(Number, "scale of the weights")},
    "variance_scaling_initializer": {
        "scale": Key(Positive, "variance x fan"),
        "mode": Key(Literal["fan_in", "fan_out"], "which fan"),
    },
    "random_uniform_initializer": {"a": Key(Number, "lower end"), "b": Key(Number, "upper end")},
    "kaiming_normal": {
        "a": Key(Number, "slope of the leaky relu"),
        "mode": Key(Literal["fan_in", "fan_out"], "which fan"),
        "nonlinearity": Key(Text, "what follows the layer"),
    },
}


def initializer(found: Mapping[str, Any]) -> Section | None:
    """Each initializer takes its own arguments."""
    name = {"name": Key(Literal[tuple(INITIALIZERS)], "initializer of the weights", required=True)}
    arguments = INITIALIZERS.get(str(found.get("name")), {})
    return None if arguments is None else {**name, **arguments}


MLP: Section = {
    "units": Key(list[Count], "width of each layer", required=True),
    "activation": Key(Activation, "after each layer", required=True),
    "initializer": Key(initializer, "of the linear layers", required=True),
    "d2rl": Key(bool, "feed the input into every layer"),
    "norm_only_first_layer": Key(bool, "normalise after the first layer only"),
    "normalization": unread("normalization stands one level up"),
    "regularizer": unread(),
}

CONV: Section = {
    "filters": Key(Count, "output channels", required=True),
    "kernel_size": Key(Count | list[Count], "width of the kernel", required=True),
    "strides": Key(Count | list[Count], "stride", required=True),
    "padding": Key(Natural | list[Natural] | Literal["same", "valid"], "padding", required=True),
}

CNN: Section = {
    "type": Key(
        Literal["conv2d", "conv2d_spatial_softargmax", "conv2d_flatten", "coord_conv2d", "conv1d"],
        "kind of convolution",
        required=True,
    ),
    "convs": Key([CONV], "the layers", required=True),
    "activation": Key(Activation, "after each layer", required=True),
    "initializer": Key(initializer, "of the convolutions", required=True),
    "permute_input": Key(bool, "observations are (H, W, C) and become (C, H, W)"),
    "regularizer": unread(),
}

RNN: Section = {
    "name": Key(Literal["lstm", "gru", "identity"], "kind of memory", required=True),
    "units": Key(Count, "size of its state", required=True),
    "layers": Key(Count, "how many on top of each other", required=True),
    "layer_norm": Key(bool, "LayerNorm on its output"),
    "before_mlp": Key(bool, "stands before the MLP instead of after it"),
    "concat_input": Key(bool, "its input is the MLP's output and the observation"),
    "concat_output": Key(bool, "its output and the observation go on together"),
}

CONTINUOUS: Section = {
    "mu_activation": Key(Activation, "on the mean", required=True),
    "sigma_activation": Key(Activation, "on the log standard deviation", required=True),
    "mu_init": Key(initializer, "of the mean's layer", required=True),
    "sigma_init": Key(initializer, "of the log standard deviation", required=True),
    "fixed_sigma": Key(bool, "one log standard deviation per action, whatever the observation", required=True),
}

SPACE: Section = {
    "continuous": Key(CONTINUOUS, "head for Box actions"),
    "discrete": Key({}, "head for Discrete actions", nullable=True),
    "multi_discrete": Key({}, "heads for MultiDiscrete or Tuple actions", nullable=True),
}

_COMMON_NETWORK: Section = {
    "name": Key(Text, "registered network or rl_games' own", required=True),
    "separate": Key(bool, "the critic has layers of its own"),
    "mlp": Key(MLP, "linear layers", required=True),
    "value_activation": Key(Activation, "on the value"),
    "normalization": Key(Normalization, "between layers"),
    "central_value": Key(bool, "this network is a critic of the state"),
    "joint_obs_actions": Key(
        {
            "embedding": Key(bool, "embed discrete actions"),
            "embedding_scale": Key(Count, "size of the embedding"),
            "mlp_scale": Key(Count, "size of the layer"),
        },
        "the critic sees actions too",
        nullable=True,
    ),
}

ACTOR_CRITIC: Section = {
    **_COMMON_NETWORK,
    "space": Key(SPACE, "action heads; the one that fits the task is kept"),
    "cnn": Key(CNN, "convolutions before the MLP; auto: the Nature CNN for pictures, else none", words=("auto",)),
    "rnn": Key(RNN, "memory"),
    "lstm": unread("rl_games 1.6.5 reads `rnn`"),
    "rnn1": unread("rl_games 1.6.5 reads `rnn`"),
    "value_shape": unread("the environment's value_size is used"),
    "require_rewards": unread("only resnet_actor_critic reads it"),
    "require_last_actions": unread("only resnet_actor_critic reads it"),
}

RESNET_ACTOR_CRITIC: Section = {
    **_COMMON_NETWORK,
    "space": ACTOR_CRITIC["space"],
    "rnn": ACTOR_CRITIC["rnn"],
    "cnn": Key(
        {
            "conv_depths": Key(list[Count], "channels of each residual block", required=True),
            "permute_input": CNN["permute_input"],
            "type": unread("residual blocks only"),
            "convs": unread("residual blocks only"),
            "activation": unread("relu throughout"),
            "initializer": unread("Kaiming throughout"),
            "regularizer": unread(),
        },
        "residual blocks",
        required=True,
    ),
    "require_rewards": Key(bool, "the memory sees the last reward"),
    "require_last_actions": Key(bool, "the memory sees the last action"),
    "blocks": unread(),
    "rnn1": unread("rl_games 1.6.5 reads `rnn`"),
    "value_shape": unread("the environment's value_size is used"),
}

SOFT_ACTOR_CRITIC: Section = {
    **_COMMON_NETWORK,
    "space": Key({"continuous": Key({}, "Box actions", nullable=True)}, "SAC's actions are continuous", required=True),
    "log_std_bounds": Key(Annotated[list[Number], Field(min_length=2, max_length=2)], "[lowest, highest] log sigma", required=True),
    "value_shape": Key(Count, "values per state"),
}

NETWORKS: dict[str, Section] = {
    "actor_critic": ACTOR_CRITIC,
    "resnet_actor_critic": RESNET_ACTOR_CRITIC,
    "soft_actor_critic": SOFT_ACTOR_CRITIC,
}


LEFT_OVER_CNN = Key(Literal["auto"], "of the default config, without meaning for a network of one's own")


def network(found: Mapping[str, Any]) -> Section | None:
    """rl_games' three by table; a registered one by its attribute `Config` (a dataclass, beside the keys of actor_critic that its
    `rl_games_keys` names) or `schema` ({key: type}); else free."""
    name = str(found.get("name"))
    if name in registry.networks:
        builder = registry.networks.get(name)
        if hasattr(builder, "Config"):
            shared = {key: ACTOR_CRITIC[key] for key in getattr(builder, "rl_games_keys", ())}
            return {"name": _COMMON_NETWORK["name"], "cnn": LEFT_OVER_CNN, **shared, **of_dataclass(builder.Config)}
        if hasattr(builder, "schema"):
            return {
                "name": _COMMON_NETWORK["name"],
                "cnn": LEFT_OVER_CNN,
                **{key: Key(kind, f"a key of {name}") for key, kind in builder.schema.items()},
            }
        return None
    if name in NETWORKS:
        return NETWORKS[name]
    return None if "name" in found else {"name": _COMMON_NETWORK["name"]}


def actor_network(found: Mapping[str, Any]) -> Section | None:
    """A policy of rl_games' own needs action heads; a central value does not."""
    section = network(found)
    if section in (ACTOR_CRITIC, RESNET_ACTOR_CRITIC):
        return {**section, "space": dataclasses.replace(section["space"], required=True)}
    return section


# ---- train.params.config --------------------------------------------------------------------------------------------

REWARD_SHAPER: Section = {
    "scale_value": Key(Number, "rewards are multiplied by it after the shift"),
    "shift_value": Key(Number, "added to rewards first"),
    "min_val": Key(float, "lower clip, after the scale"),
    "max_val": Key(float, "upper clip, after the scale"),
    "log_val": Key(bool, "take the logarithm last"),
    "is_torch": Key(bool, "rewards are tensors"),
}

STOCK_PLAYER: Section = {
    "games_num": Key(Count, "episodes; player.games_num on the command line goes first"),
    "deterministic": Key(bool, "most likely actions; player.deterministic on the command line goes first"),
    "env_config": Key(Free, "environment arguments for playing", nullable=True),
    "use_vecenv": Key(bool, "rl_games' player only; players here are always vectorised"),
    "render": Key(bool, "rl_games' player only; here: video=True"),
    "render_sleep": Key(NonNegative, "rl_games' player only"),
    "n_game_life": Key(Count, "lives that make up one game"),
    "print_stats": Key(bool, "rl_games' player only"),
    "balance_env_rewards": Key(bool, "rl_games' player only; players here always balance"),
    "evaluation": Key(bool, "rl_games' player only"),
    "update_checkpoint_freq": Key(Count, "rl_games' player only"),
    "dir_to_monitor": Key(Text | None, "rl_games' player only"),
    "device_name": unread(),
    "determenistic": unread("misspelt in a stock YAML; `deterministic` is the key"),
}

COMMON_CONFIG: Section = {
    "name": Key(Text, "name of the experiment; default <Task>_<Algo>"),
    "full_experiment_name": Key(Text | None, "rl_games' own run directory name"),
    "env_name": Key(Text, "environment registered with rl_games; read where task is from_train"),
    "env_config": Key(Free, "its arguments", nullable=True),
    "num_actors": Key(Count, "environments stepped together"),
    "reward_shaper": Key(REWARD_SHAPER, "what happens to rewards before they are learnt from", nullable=True),
    "player": Key(STOCK_PLAYER, "how rl_games plays", nullable=True),
    "device": Key(Text, "device of the networks"),
    "device_name": Key(Text, "device of the player"),
    "normalize_input": Key(bool, "running mean and variance of the observations"),
    "mixed_precision": Key(bool, "bfloat16 where it helps, on CUDA"),
    "gamma": Key(Fraction, "discount per step", required=True),
    "value_bootstrap": Key(bool, "a time-out is no end: go on with the value there"),
    "weight_decay": Key(NonNegative, "of the optimizer"),
    "clip_actions": Key(bool, "clip to [-1, 1] and stretch to the environment's Box"),
    "is_train": Key(bool, "rl_games sets it"),
    "score_to_win": Key(float, "stop when the mean return exceeds it"),
    "games_to_track": Key(Count, "episodes that the mean return is taken over"),
    "save_best_after": Key(Natural, "epochs before the first best.pth"),
    "save_frequency": Key(Natural, "epochs between numbered checkpoints; 0: none"),
    "max_epochs": Key(Limit, "stop after this many epochs; -1: no limit"),
    "max_frames": Key(Limit, "stop after this many environment steps; -1: no limit"),
    "max_steps": Key(Limit, "rl_games' other name of max_frames"),
    "print_stats": Key(bool, "rl_games' own lines per epoch"),
    "train_dir": Key(Text, "rl_games' runs_dir"),
    "network_path": Key(Text, "rl_games reads it and uses it for nothing"),
    "log_path": Key(Text, "rl_games reads it and uses it for nothing"),
    "features": Key(Free, "rl_games' observer and soft augmentation", nullable=True),
    "torch_compile": Key(bool | CompileMode | Free, "compile the networks; a mode, or {mode, critic_mode}"),
    "multi_gpu": Key(bool, "data-parallel training, which torchrun starts: docs/scale.md"),
    "population_based_training": Key(bool, "rl_games' PBT names and intervals"),
    "pbt_idx": Key(Natural, "index of the policy in its population"),
    "defer_summaries_sec": Key(NonNegative, "PBT: seconds before the first summary"),
    "summaries_interval_sec_min": Key(NonNegative, "PBT: shortest interval between summaries"),
    "summaries_interval_sec_max": Key(NonNegative, "PBT: longest interval between summaries"),
}

CENTRAL_VALUE: Section = {
    "minibatch_size": Key(Count, "rows of a minibatch"),
    "minibatch_size_per_env": Key(Count, "rows of a minibatch per environment"),
    "mini_epochs": Key(Count, "passes over the batch", required=True),
    "learning_rate": Key(NonNegative, "of its optimizer", required=True),
    "lr_schedule": Key(Schedule, "linear, or constant"),
    "clip_value": Key(bool, "clip the value loss", required=True),
    "normalize_input": Key(bool, "running mean and variance of the states", required=True),
    "e_clip": Key(NonNegative, "clip range of the value"),
    "truncate_grads": Key(bool, "clip the gradient's norm"),
    "grad_norm": Key(NonNegative, "to this"),
    "weight_decay": Key(NonNegative, "of its optimizer"),
    "mixed_precision": Key(bool, "bfloat16 where it helps, on CUDA"),
    "freeze_critic": Key(bool, "do not train it"),
    "network": Key(network, "its network", required=True),
    "model": Key({"name": Key(Text, "rl_games' central_value", required=True)}, "its model"),
}

SELF_PLAY: Section = {
    "update_score": Key(Number, "mean score at which the opponent is updated", required=True),
    "games_to_check": Key(Count, "episodes that the mean is taken over", required=True),
    "check_scores": Key(bool, "infos['scores'] instead of the return"),
    "env_update_num": Key(Count, "opponents updated at once"),
}

PPO_CONFIG: Section = {
    **COMMON_CONFIG,
    "normalize_input": dataclasses.replace(COMMON_CONFIG["normalize_input"], required=True),
    "horizon_length": Key(Count, "steps per environment and epoch", required=True),
    "minibatch_size": Key(Count, "rows of a minibatch; goes before minibatch_size_per_env"),
    "minibatch_size_per_env": Key(Count, "rows of a minibatch per environment"),
    "mini_epochs": Key(Count, "passes over each batch", required=True),
    "learning_rate": Key(NonNegative, "at the start", required=True),
    "lr_schedule": Key(Schedule, "adaptive (to kl_threshold), linear (to 0 at the end), or constant", required=True),
    "schedule_type": Key(Literal["legacy", "standard"], "adapt after each minibatch, or after each pass"),
    "schedule_entropy": Key(bool, "anneal entropy_coef with the learning rate"),
    "kl_threshold": Key(Positive, "KL divergence that the adaptive schedule aims at"),
    "tau": Key(Fraction, "lambda of generalised advantage estimation", required=True),
    "e_clip": Key(NonNegative, "clip range of the probability ratio", required=True),
    "clip_value": Key(bool, "clip the value loss", required=True),
    "critic_coef": Key(NonNegative, "weight of the value loss", required=True),
    "entropy_coef": Key(Number, "weight of the entropy bonus", required=True),
    "bounds_loss_coef": Key(NonNegative | None, "weight of the penalty on means beyond the action bounds"),
    "bound_loss_type": Key(Literal["bound", "regularisation"], "penalise means beyond 1.1, or all means"),
    "truncate_grads": Key(bool, "clip the gradient's norm"),
    "grad_norm": Key(NonNegative, "to this", required=True),
    "normalize_advantage": Key(bool, "to mean 0 and deviation 1 over the batch", required=True),
    "normalize_rms_advantage": Key(bool, "by a moving average instead"),
    "adv_rms_momentum": Key(Fraction, "of that moving average"),
    "normalize_value": Key(bool, "running mean and variance of the returns"),
    "freeze_critic": Key(bool, "do not train the critic"),
    "use_smooth_clamp": Key(bool, "a smooth clip of the ratio"),
    "use_action_masks": Key(bool, "the environment says which actions are allowed"),
    "use_experimental_cv": Key(bool, "train the policy's own value beside a central value"),
    "use_diagnostics": Key(bool, "explained variance and clip fraction per epoch"),
    "ppo": Key(bool, "clipped objective; false: plain policy gradient"),
    "seq_length": Key(Count, "steps that a recurrent policy is unrolled for in training"),
    "bptt_length": Key(Natural, "steps that gradients flow back; rl_games' default is seq_length"),
    "zero_rnn_on_done": Key(bool, "forget at the end of an episode"),
    "epochs_between_resets": Key(Natural, "reset all environments this often; 0: never"),
    "central_value_config": Key(CENTRAL_VALUE, "a critic that sees the state", nullable=True),
    "self_play": Key(bool, "rl_games reads it and uses it for nothing"),
    "self_play_config": Key(SELF_PLAY, "when the opponent is updated", nullable=True),
    "seq_len": unread("seq_length is the key"),
    "ignore_dead_batches": unread(),
    "rnd_config": unread("rl_games 1.6.5 has no RND"),
    "central_value_config1": unread(),
}

SAC_CONFIG: Section = {
    **COMMON_CONFIG,
    "batch_size": Key(Count, "rows of an update", required=True),
    "replay_buffer_size": Key(Count, "transitions kept", required=True),
    "num_steps_per_episode": Key(Count, "steps per environment and epoch"),
    "num_updates_per_step": Key(Count, "critic updates per epoch"),
    "num_warmup_frames": Key(Natural | None, "random steps before learning; goes before num_warmup_steps"),
    "num_warmup_steps": Key(Natural, "random epochs before learning"),
    "policy_frequency": Key(Count, "critic updates per policy update"),
    "critic_tau": Key(Fraction, "how far the target moves at each update"),
    "init_alpha": Key(Positive, "temperature at the start", required=True),
    "learnable_temperature": Key(bool, "adapt the temperature to the target entropy", required=True),
    "target_entropy_coef": Key(Number, "target entropy = -this x action size"),
    "actor_lr": Key(NonNegative, "learning rate of the policy", required=True),
    "critic_lr": Key(NonNegative, "learning rate of the critics", required=True),
    "alpha_lr": Key(NonNegative, "learning rate of the temperature", required=True),
    "actor_betas": Key(list[Fraction], "Adam's betas of the policy"),
    "critic_betas": Key(list[Fraction], "Adam's betas of the critics"),
    "alphas_betas": Key(list[Fraction], "Adam's betas of the temperature"),
    "critic_grad_clip": Key(NonNegative, "clip of the critics' gradient norm; 0: none"),
}

# ---- what depends on registered classes -----------------------------------------------------------------------------


FINITE: dict[Any, Any] = {float: Number, float | None: Number | None}


def of_dataclass(options: type) -> Section:
    """The keys of a dataclass; one without a default is required. A float is a finite one."""
    hints = typing.get_type_hints(options, include_extras=True)
    missing = dataclasses.MISSING
    return {
        field.name: Key(
            FINITE.get(hints[field.name], hints[field.name]),
            f"a key of {options.__name__}",
            required=field.default is missing and field.default_factory is missing,
        )
        for field in dataclasses.fields(options)
        if field.init
    }


def of_algorithm(entry: registry.AlgoEntry) -> Section:
    """train.params.config: rl_games' keys for this family of algorithm, then the algorithm's own, which go first.

    A key of rl_games' that the algorithm's dataclass gives a default need not stand in the YAML.
    """
    off_policy = entry.name == "sac" or any(base.__name__ == "SACAgent" for base in entry.cls.__mro__)
    section = SAC_CONFIG if off_policy else PPO_CONFIG
    return {**section, **(of_dataclass(entry.config) if entry.config else {})}


# What the runner hands to a task kind itself; everything else in its signature is a key of the task's YAML.
RUNNER_GIVES = ("self", "num_envs", "seed", "device", "render_mode")


def of_task(kind: Callable[..., Any]) -> Section | None:
    """task: name, kind, num_envs and the parameters of the kind's factory. None where it takes any keyword."""
    section: Section = {
        "name": Key(Text, "name of the task", required=True),
        "kind": Key(Text, "registered kind of environment", required=True),
        "num_envs": Key(Count | None, "environments unless num_envs or train.params.config.num_actors says otherwise"),
        "check_obs": Key(bool, "hold the first observations against the spaces; default true"),
        "hidden_obs": Key(list[int] | None, "indices of the flat observation that the policy does not see"),
    }
    factory = kind.__init__ if inspect.isclass(kind) else kind
    hints = typing.get_type_hints(factory, include_extras=True)
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            return None
        if name not in RUNNER_GIVES and parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            section[name] = Key(hints.get(name, Any), "an option of this task kind", required=parameter.default is parameter.empty)
    return section


def of_params(config: Section) -> Section:
    """train.params for an algorithm whose config section is given."""
    return {
        "seed": Key(Seed | None, "seed, where the root's is not given"),
        "torch_threads": Key(Natural | Literal["auto"], "threads of torch on the CPU; 0: as torch chooses"),
        "algo": Key({"name": Key(Text, "registered algorithm", required=True)}, "the algorithm", required=True),
        "model": Key(
            {"name": Key(Text, "rl_games' model; auto: the one for the task's actions")},
            "how outputs become actions",
            nullable=True,
        ),
        "network": Key(actor_network, "the network", required=True),
        "config": Key(config, "the algorithm's keys", required=True),
        "load_checkpoint": unread("checkpoint= is the key"),
        "load_path": unread("checkpoint= is the key"),
    }


def of_train(config: Section) -> Section:
    """The train group: an rl_games YAML, and a name for run directories."""
    return {
        "name": Key(Text, "name of the algorithm in run directories; default train.params.algo.name"),
        "params": Key(of_params(config), "what rl_games calls params", required=True),
        "experiments": unread("rl_games' old tuner"),
        "experiment_config1": unread("rl_games' old tuner"),
        "start_exp": unread("rl_games' old tuner"),
        "start_sub_exp": unread("rl_games' old tuner"),
    }
