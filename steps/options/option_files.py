"""Option files: `name: value` lines in YAML or JSON, kept as the texts a command line would get.

A text and not YAML's own value, since YAML reads `1e-4` as text and `no` as false; what a value means is the option's to say.
"""

from pathlib import Path
from typing import Any

import yaml


def read_option_file(path: str | Path) -> dict[str, str]:
    """Each name in the file with its text, in the file's order.

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
    found: dict[str, str] = {}
    for name, value in root.value:
        if not isinstance(name, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            raise ValueError(f"options_file={path}, line {name.start_mark.line + 1}: must be one name and one value")
        if name.value in found:
            raise ValueError(f"options_file={path}, line {name.start_mark.line + 1}: {name.value} is there twice")
        found[name.value] = value.value
    return found


def option_file_text(values: dict[str, Any]) -> str:
    """The text of a file that `read_option_file` reads back; values are numbers, truths and texts."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
