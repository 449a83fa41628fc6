"""Tables and rendered blocks in Markdown files, for the results."""

__all__ = ["markdown_table", "replace_block"]


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Return rows as a Markdown table, without a newline at the end. The keys of the rows are the column headings.

    Args:
        rows: at least one. All have the same keys in the same order.

    Raises:
        ValueError: there is no row; a row has other columns than the first one; a cell has a line break.
    """
    if not rows:
        raise ValueError("a table needs at least one row")
    columns = list(rows[0])
    for row in rows:
        if list(row) != columns:
            raise ValueError(f"every row of a table needs the columns {columns}, but one has {list(row)}")
        for cell in (*row, *row.values()):
            if "\n" in cell:
                raise ValueError(f"the cell {cell!r} of a table has a line break: write it on one line")
    lines = [columns, ["---"] * len(columns), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def replace_block(text: str, begin: str, end: str, content: str) -> str:
    """Return text with the lines between the marker lines begin and end replaced by content. The markers stay.

    Args:
        text: the whole file.
        begin, end: the markers. Each is a line of its own, and there is one of each.
        content: the new lines, without the markers.

    Raises:
        ValueError: a marker is missing or there are two of it; end comes before begin.
    """
    lines = text.splitlines()
    for marker in (begin, end):
        if lines.count(marker) != 1:
            raise ValueError(
                f"the text has {lines.count(marker)} lines {marker!r}, but needs exactly one: the block between"
                f" {begin!r} and {end!r} is replaced, and the text around it stays. Add the missing line, or remove"
                " one of the two"
            )
    first, last = lines.index(begin), lines.index(end)
    if last < first:
        raise ValueError(f"{end!r} comes before {begin!r}: exchange the two lines")
    newline = "\n" if text.endswith("\n") else ""
    return "\n".join([*lines[: first + 1], *content.strip("\n").splitlines(), *lines[last:]]) + newline
