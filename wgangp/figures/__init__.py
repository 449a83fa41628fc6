"""The paper's figures, and two that it lacks: one file a figure, one command each (scripts/reproduce.py).

A figure is a frozen dataclass of its numbers, with
    PAPER, why                  what the paper shows, and why we part from it
    cells()                     the settings that are compared, each a dict of words and numbers
    measure(cell, seed, ...)    one run of one setting: numbers that JSON can hold
    draw(path, records)         the picture of all records, each {"seed", **cell, **numbers}
    findings(records)           what came out, in one sentence of numbers
    table(records)              all of it, a row for each setting: {column: text}

A figure's runs lie in its folder, to be resumed; they have no config.yaml, so that the other scripts do not take them.
"""
