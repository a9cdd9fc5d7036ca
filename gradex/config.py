"""Command lines: a frozen dataclass a stage, `--config file.yaml` first, flags win.

Every field of a stage's `Config` is a flag of the same name. A YAML file sets the same names, and
the `config.yaml` that a run leaves behind is such a file, so that `--config` repeats the run.
"""

import logging
import math
import sys
import warnings
from argparse import (
    Action,
    ArgumentDefaultsHelpFormatter,
    ArgumentParser,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, fields
from inspect import get_annotations
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gradex.errors import GradexError, printable, unknown

# What a run adds to the flags in its config.yaml: read by people and by `runs.newest`, not flags.
RECORD_KEYS = ("stage", "created", "seconds", "versions", "inputs")

NOISY = ("httpx", "datasets", "huggingface_hub")

ConfigT = TypeVar("ConfigT")


def option(default: Any, help: str) -> Any:
    """A field of a Config: its default and its help line."""
    help = help.replace("%", "%%")  # which argparse would take for the start of a format
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def require_positive(config: object, *names: str) -> None:
    """Refuse zero and negative values of the named fields (None means: not set)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise GradexError(f"--{name}: found {value}, expected a number above 0")


def require_not_negative(config: object, *names: str) -> None:
    """Refuse values of the named fields below zero (None means: not set)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 2**63:
            raise GradexError(f"--{name}: found {value}, expected a number of at least 0")


def require_fraction(config: object, *names: str) -> None:
    """Refuse values of the named fields outside (0, 1]."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value <= 1:
            raise GradexError(f"--{name}: found {value}, expected a fraction above 0, at most 1")


def require_left_out(config: object, names: Iterable[str], why: str) -> None:
    """Refuse flags with a value of their own, where they would be read and mean nothing."""
    usual = {field.name: field.default for field in fields(config)}
    for name in names:
        if getattr(config, name) != usual[name]:
            raise GradexError(f"--{name}: {why}")


def require_owner(config: object, flag: str, owners: Mapping[str, Sequence[str]]) -> None:
    """Refuse flags that belong to other values of `flag` than the one it has."""
    value = getattr(config, flag)
    for name, values in owners.items():
        if value not in values:
            require_left_out(
                config, [name], f"found with --{flag} {value}, which has no such flag; leave it "
                f"out, or say --{flag} {' or '.join(values)}",
            )  # fmt: skip


class _StrictLoader(yaml.SafeLoader):
    """Plain values only, and a key that stands twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key}' stands twice",
                    problem_mark=node.value[place][0].start_mark,
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, or one sentence that names the file and the line."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except FileNotFoundError:
        raise GradexError(f"{path}: no such file") from None
    except OSError as error:
        raise GradexError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise GradexError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise GradexError(f"{path}{line}: not valid YAML ({_first_line(error)})") from None
    if not isinstance(content, dict):
        raise GradexError(f"{path}: found {type(content).__name__}, expected `key: value` lines")
    return content


def _first_line(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def parse(config_class: type[ConfigT], argv: Sequence[str], *, stage: str) -> ConfigT:
    """The stage's Config from `argv`, over the values of `--config FILE` where one is named."""
    parser = _parser(config_class, stage)
    argv = _first_word_as_flag(config_class, argv)
    known, _ = parser.parse_known_args(argv)
    from_file: list[str] = []
    if known.config:
        from_file = _yaml_as_flags(Path(known.config), config_class, stage)
        _parse_all(parser, from_file, where=f"{known.config}: ")
    values = vars(_parse_all(parser, [*from_file, *argv]))
    values.pop("config")
    return config_class(**values)


def _first_word_as_flag(config_class: type, argv: Sequence[str]) -> list[str]:
    """`gradex init DIR` is `gradex init --dir DIR`, for a Config that names its FIRST_WORD."""
    flag = getattr(config_class, "FIRST_WORD", None)
    if flag and argv and not argv[0].startswith("-"):
        return [f"--{flag}", *argv]
    return list(argv)


def _parser(config_class: type, stage: str):
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str):
            advice = f" (`gradex {stage} --help` lists the flags)" if stage else ""
            raise GradexError(f"{message}{advice}")

    types = {f.name: f.type for f in fields(config_class)}
    parser = Parser(
        config_class,
        prog=f"gradex {stage}",
        usage=f"gradex {stage} [flags]",
        description=sys.modules[config_class.__module__].__doc__,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    for f in fields(config_class):  # the parser writes its own types into the class
        f.type = types[f.name]
    parser.add_argument("--config", help="YAML file with values for these flags; flags win")
    _group_flags(parser, config_class)
    return parser


def _group_flags(parser: ArgumentParser, config_class: type) -> None:
    """Flags that stages share stand under what their class is about, after the stage's own."""
    rest = next(group for group in parser._action_groups if group.title == "options")
    for shared in config_class.__mro__[1:-1]:
        names = get_annotations(shared).keys() - get_annotations(config_class).keys()
        flags = [action for action in rest._group_actions if action.dest in names]
        if flags:
            title = (shared.__doc__ or shared.__name__).partition(".")[0]
            parser.add_argument_group(title.lower())._group_actions = flags
            rest._group_actions = [a for a in rest._group_actions if a not in flags]


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """A flag in one spelling, its default behind its line; None is told by the line itself, and
    what is off needs no telling."""

    def _get_help_string(self, action: Action) -> str | None:
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)

    def _format_action_invocation(self, action: Action) -> str:
        if action.nargs == 0 or action.const is True:
            return ", ".join(action.option_strings[: 2 if action.nargs == 0 else 1])
        value = self._metavar_formatter(action, "VALUE")(1)[0]
        return f"{action.option_strings[0]} {value}{' ...' if action.nargs == '+' else ''}"


def _parse_all(parser, argv: Sequence[str], where: str = ""):
    try:
        namespace, rest = parser.parse_known_args(argv)
    except GradexError as error:
        raise GradexError(f"{where}{error}") from None
    if rest:
        raise unknown("argument", rest[0], [f"--{name}" for name in vars(namespace)])
    return namespace


def parse_values(config_class: type[ConfigT], values: dict[str, Any], *, where: str) -> ConfigT:
    """A Config from values that a file holds, checked as if they were flags."""
    parser = _parser(config_class, stage="")
    namespace = vars(_parse_all(parser, _as_flags(values, config_class, where), f"{where}: "))
    namespace.pop("config")
    try:
        return config_class(**namespace)
    except GradexError as error:
        raise GradexError(f"{where}: {error}") from None


def _yaml_as_flags(path: Path, config_class: type, stage: str) -> list[str]:
    content = read_yaml(path)
    if content.get("stage", stage) != stage:
        raise GradexError(
            f"{path}: this is the config of `{content['stage']}`, expected that of `{stage}`; "
            f"`gradex {path}` runs a config again"
        )
    values = {key: value for key, value in content.items() if key not in RECORD_KEYS}
    return _as_flags(values, config_class, str(path))


def _as_flags(values: dict[str, Any], config_class: type, where: str) -> list[str]:
    """Values as command line words, so that files and flags are checked by one parser."""
    known = {f.name: f.type for f in fields(config_class)}
    words: list[str] = []
    for key, value in values.items():
        if key not in known:
            raise unknown("key", key, known, where)
        if isinstance(value, dict) or (isinstance(value, list) and "list" not in str(known[key])):
            raise GradexError(f"{where}: key '{key}' is {value!r:.60}, expected one value")
        if value is None:
            continue
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        else:
            words.append(f"--{key}={value}")
    return words


def with_defaults(config: ConfigT, defaults: dict[str, Any]) -> ConfigT:
    """A copy of `config` in which the fields left at None take their value from `defaults`."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    filled = {
        name: defaults.get(name) if value is None else value for name, value in values.items()
    }
    return type(config)(**filled)


def main(stage: Callable[[Any], Path], config_class: type, argv: Sequence[str] | None = None):
    """Run a stage from the command line: exit code 0, 2 for a user's mistake, 130 for Ctrl-C."""
    be_quiet()
    try:
        config = parse(config_class, sys.argv[1:] if argv is None else argv, stage=stage.__name__)
        print(stage(config))
    except GradexError as error:
        print(printable(f"gradex: error: {error}"), file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(printable(f"gradex: error: {place}{error.strerror or error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngradex: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def be_quiet(level: int = logging.INFO) -> None:
    """Our own log lines from `level` on stderr, without the libraries' chatter."""
    from transformers.utils import logging as transformers_logging

    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(_Printable())
    logging.basicConfig(level=level, handlers=[shown])
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"lightning|torch|peft|transformers")
