"""Suggests layers for .importlinter: modules of a package by their longest way down through internal imports.

`python -m tools.layers PACKAGE` prints one line per layer, highest first; a helper for the person who places a new module.
"""

import sys

import grimp


def layers(package: str) -> list[list[str]]:
    """Direct children of `package`, grouped by depth; highest layer first.

    Raises:
        ValueError: The children import each other in a circle.
    """
    graph = grimp.build_graph(package)
    children = {child: child.removeprefix(f"{package}.") for child in graph.find_children(package)}

    def owner(module: str) -> str | None:
        found = [child for child in children if module == child or module.startswith(f"{child}.")]
        return found[0] if found else None

    below: dict[str, set[str]] = {child: set() for child in children}
    for child in children:
        for module in {child, *graph.find_descendants(child)}:
            owners = {owner(other) for other in graph.find_modules_directly_imported_by(module)}
            below[child] |= {one for one in owners if one is not None and one != child}
    depth: dict[str, int] = {}

    def measure(child: str, path: tuple[str, ...]) -> int:
        if child in path:
            raise ValueError(" -> ".join([*path, child]))
        if child not in depth:
            depth[child] = 1 + max((measure(one, (*path, child)) for one in below[child]), default=-1)
        return depth[child]

    for child in children:
        measure(child, ())
    levels = range(max(depth.values(), default=-1), -1, -1)
    return [sorted(children[child] for child in children if depth[child] == level) for level in levels]


def main() -> int:
    for layer in layers(sys.argv[1]):
        print("    " + " | ".join(layer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
