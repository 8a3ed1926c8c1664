"""Starts a new algorithm: `python -m algos.new MyAlgo` writes algos/my_algo.py and cfg/train/MyAlgo.yaml, ready to train and play.

With `--out DIR` both are written outside this repository, for a paper's own: DIR/my_algo.py and DIR/cfg/train/MyAlgo.yaml.
"""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path

from core import registry
from core.cli import main_guard
from core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "algos" / "template.py"
TEMPLATE_YAML = ROOT / "cfg" / "train" / "Template.yaml"


def snake(name: str) -> str:
    """MyAlgo -> my_algo, TD3 -> td3, AMPPlus -> amp_plus."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def check_name(name: str, out: Path | None) -> None:
    """Raises UserError for a name that is no class name, or taken by an algorithm, a module or a config."""
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or keyword.iskeyword(snake(name)):
        raise UserError(f"'{name}' cannot name an algorithm: use letters and digits in CamelCase, e.g. MyAlgo")
    registry.discover()
    if snake(name) in registry.algos:
        raise UserError(f"the name '{snake(name)}' is taken: algorithm '{snake(name)}' is registered already")
    modules = {path.stem for path in (ROOT / "algos").glob("*.py")}
    if snake(name) in modules:
        raise UserError(f"the name '{name}' is taken: algos/{snake(name)}.py is part of gamesmith")
    for path in targets(name, out):
        if path.exists():
            raise UserError(f"'{path}' exists already: choose another name, or remove it first")


def targets(name: str, out: Path | None) -> tuple[Path, Path]:
    """Where the Python file and the YAML go."""
    if out is None:
        return ROOT / "algos" / f"{snake(name)}.py", ROOT / "cfg" / "train" / f"{name}.yaml"
    return out / f"{snake(name)}.py", out / "cfg" / "train" / f"{name}.yaml"


def renamed(text: str, name: str) -> str:
    """The template's text with its names replaced: Template, template (as an identifier), template_coef."""
    text = re.sub(r"\bTemplate(?=Options|Policy|\b)", name, text)
    return re.sub(r"(?<![A-Za-z])template(?=_coef|\b)", snake(name), text)


def write(name: str, out: Path | None = None) -> tuple[Path, Path]:
    """Writes both files and returns their paths. Raises UserError for a bad or taken name, or a place that cannot be written."""
    check_name(name, out)
    code, config = targets(name, out)
    try:
        for path, source in ((code, TEMPLATE), (config, TEMPLATE_YAML)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(renamed(source.read_text(encoding="utf-8"), name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{error.filename}': {error.strerror}") from error
    if out is not None:
        text = config.read_text(encoding="utf-8").replace(f"algos/{snake(name)}.py", f"{snake(name)}.py beside this folder")
        config.write_text(text, encoding="utf-8")
    return code, config


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m algos.new", description="Start a new algorithm from the template.")
    parser.add_argument("name", help="CamelCase, e.g. MyAlgo")
    parser.add_argument("--out", type=Path, help="a directory outside this repository to write into")
    arguments = parser.parse_args()
    with main_guard():
        code, config = write(arguments.name, arguments.out)
        place = f"--config-dir {arguments.out / 'cfg'} modules={code} " if arguments.out else ""
        print(f"wrote {code}\nwrote {config}\n\ntrain it:\npython train.py {place}train={arguments.name} task=CartPole")


if __name__ == "__main__":
    main()
