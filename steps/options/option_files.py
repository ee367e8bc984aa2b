"""Option files: `name: value` lines in YAML or JSON, kept as the texts a command line would get.

A text and not YAML's own value, since YAML reads `1e-4` as text and `no` as false; what a value means is the option's to say.
"""

import json
from pathlib import Path
from typing import Any

import yaml

Texts = str | list[str] | dict[str, str]


def read_option_file(path: str | Path, gathered: str | None = None) -> dict[str, str]:
    """Each name in the file with its text, in the file's order.

    Args:
        gathered: the option that takes every list and table in the file, as the text of one table; None refuses them.

    Raises:
        ValueError: no such file, not YAML or JSON, not a table of single values, or a name twice; the message names the file.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"options_file={path}: cannot be read ({' '.join(str(error).split())})") from error
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"options_file={path}: must hold lines `name: value`")
    found: dict[str, Texts] = {}
    for name, value in root.value:
        if not isinstance(name, yaml.ScalarNode) or not (isinstance(value, yaml.ScalarNode) or gathered):
            raise ValueError(f"options_file={path}, line {name.start_mark.line + 1}: must be one name and one value")
        if name.value in found:
            raise ValueError(f"options_file={path}, line {name.start_mark.line + 1}: {name.value} is there twice")
        found[name.value] = texts_of(value)
    single = {name: value for name, value in found.items() if isinstance(value, str)}
    several = {name: value for name, value in found.items() if name not in single}
    if several and gathered in single:
        raise ValueError(f"options_file={path}: {gathered} says what {', '.join(several)} on lines of their own say")
    return single | ({gathered: json.dumps(several, ensure_ascii=False)} if gathered and several else {})


def texts_of(node: yaml.Node) -> Texts:
    """A text, a list of texts or a table of texts; what lies deeper is its text as YAML."""
    if isinstance(node, yaml.SequenceNode):
        return [_text(each) for each in node.value]
    return {_text(name): _text(value) for name, value in node.value} if isinstance(node, yaml.MappingNode) else _text(node)


def _text(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else yaml.serialize(node).strip()


def option_file_text(values: dict[str, Any]) -> str:
    """The text of a file that `read_option_file` reads back; values are numbers, truths and texts."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
