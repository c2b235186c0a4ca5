"""Draw two ways round a tree as each trajectory head walks them, and print the shares: `docs/two_ways.py OUT.svg`.

3000 steps of 64 demonstrations, three seeds, 400 paths each; the drawing is of the first seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gr2.contracts import Array
from gr2.cvae_head.kinds import HeadOptions, small
from gr2.cvae_head.two_ways import TREE, demonstrate, judge, train_two_ways, walk

HEADS = {
    "cvae, z sampled": HeadOptions(),
    "cvae, z = 0": HeadOptions(sample_latent=False),
    "cvae, learned prior": HeadOptions(prior="flow"),
    "regression": HeadOptions(kind="regression"),
    "flow": HeadOptions(kind="flow", draws=4),
    "diffusion": HeadOptions(kind="diffusion", draws=4),
    "tokens": HeadOptions(kind="tokens"),
}
SIDE, TITLE, PATHS = 180, 22, 60
STYLE = """<style>
svg { --ink: #282c34; --tree: #2a9d6f; --way: #2f6fdb; font-family: system-ui, sans-serif }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ee } }
text { fill: var(--ink); font-size: 13px } circle { fill: var(--tree); fill-opacity: 0.45 }
path { fill: none; stroke: var(--way); stroke-opacity: 0.25 }
</style>"""


def panel(name: str, paths: Array, column: int, row: int) -> str:
    """Draw paths and the tree."""
    scale, top = SIDE / 2.4, row * (SIDE + TITLE) + TITLE
    left = column * (SIDE + 8)

    def place(point: Array) -> str:
        return f"{left + scale * (point[0] + 0.2):.1f} {top + scale * (1.2 - point[1]):.1f}"

    lines = "".join(f'<path d="M{" L".join(place(point) for point in path)}"/>' for path in paths)
    x, y = place(np.asarray(TREE.center)).split()
    return (
        f'<text x="{left + 6}" y="{top - 6}">{name}</text>'
        f'<circle cx="{x}" cy="{y}" r="{scale * TREE.radius:.1f}"/>{lines}'
    )


def main() -> None:
    """Train, print a table and write the drawing."""
    panels = [panel("demonstrations", demonstrate(PATHS, np.random.default_rng(0)), 0, 0)]
    print("| head | hit the tree | left | right |", "|---|---|---|---|", sep="\n")
    for number, (name, options) in enumerate(HEADS.items(), start=1):
        heads = [train_two_ways(options.apply(small()), steps=3000, seed=seed) for seed in (0, 1, 2)]
        shares = [judge(head, count=400, seed=1) for head in heads]
        cells = [
            ", ".join(f"{100 * getattr(share, part):.1f}" for share in shares) for part in ("hits", "left", "right")
        ]
        print(f"| {name} | {' | '.join(cells)} % |", flush=True)
        panels.append(panel(name, walk(heads[0], count=PATHS, seed=1), number % 4, number // 4))
    size = f"{4 * (SIDE + 8)} {2 * (SIDE + TITLE)}"
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}">{STYLE}{"".join(panels)}</svg>\n'
    Path(sys.argv[1]).write_text(drawing)


main()
