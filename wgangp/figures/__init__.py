"""The paper's figures, and three that the paper does not have: one file per figure. scripts/reproduce.py runs them.

A figure is a frozen dataclass. Its fields are its settings, the keys of conf/figure/NAME.yaml. Its methods compute and
draw; the text about a figure is written by hand in results/NAME/README.md.

    cells()                               the settings that are compared: a list of dicts of names and numbers
    measure(cell, seed, folder, device)   one run of one cell -> a dict of numbers and lists, which JSON can hold
    draw(path, records)                   draw the picture of all records, each {"seed": seed, **cell, **numbers}
    table(records)                        the rows of the table, each a dict {column: text}

A run that trains a generator has a folder, from which it is resumed. This folder has no config.yaml, so that the other
scripts do not take it for a run of scripts/train.py.
"""
