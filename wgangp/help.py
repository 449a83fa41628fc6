"""The help of the commands: all keys, groups and choices, read from the comments in conf/."""

import re
from pathlib import Path

from wgangp.config import CONF

__all__ = ["explain_keys", "list_choices"]


def explain_keys(config_name: str) -> str:
    """Return the help of the command with this config: every key, group and choice, with its comment in conf/."""
    root = CONF / f"{config_name}.yaml"
    groups = re.findall(r"^  - (\w+):", root.read_text(), re.MULTILINE)
    lines: list[str] = []
    choices = [(group, name, path) for group in groups for name, path in list_choices(group).items()]
    for group, name, path in (("", "", root), *choices):
        header, body = re.match(r"((?:# .*\n)+)((?s:.*))", path.read_text()).groups()
        titles, prefix = header.replace("# ", "").splitlines(), ""
        if path is root:
            lines += [*titles, "", "Keys and choices. A choice lists keys that are new or have another default:", ""]
        else:
            title = next(line for line in titles if not line.startswith(("@package", "python ")))
            lines.append(f"{f'{group}={name}':<36} {title}")
            prefix = f"  {group}."
        block = ""
        for indent, key, value, comment in re.findall(r"^( *)(\w+):(?: (.*?))??(?: # (.*))?$", body, re.MULTILINE):
            block = block if indent else f"{key}."
            default = "BUDGET" if value.startswith('"${budget') else value
            line = f"{f'{prefix}{block if indent else str()}{key}={default}':<36} {comment}"
            if comment and key != "hydra" and line not in lines:
                lines.append(line)
    lines += [
        "",
        "-m: one job per value of key=1,2. --cfg job: prints the config, runs nothing. --hydra-help: Hydra's help",
    ]
    return "\n".join(lines)


def list_choices(group: str) -> dict[str, Path]:
    """Return the choices of a group with their files. A choice in a folder of the group is called FOLDER/NAME."""
    folder = CONF / group
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
