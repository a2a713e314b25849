"""Detect chat templates that print message contents unchanged and never branch on them.

Decided once, on the template's syntax tree. The text of a conversation is then the fixed text of its roles around the
contents (assistant_spans.Layout), without rendering each row. All other templates are rendered for every row.
"""

from jinja2 import Environment, nodes

# Nodes that may enclose output without changing it.
_TRANSPARENT = (nodes.Template, nodes.For, nodes.If)


# Computed keys, and methods of dict: with these, contents could be read in other ways.
_NO_KEYS = frozenset((None, *dir({})))


def prints_verbatim(environment: Environment, source: str) -> bool:
    """Whether a template uses `messages` and its items only to loop over them, to read a role or another key by name,
    and to print contents, alone or concatenated with other text."""
    tree = environment.parse(source)
    parents = {id(child): node for node in (tree, *tree.find_all(nodes.Node)) for child in node.iter_child_nodes()}
    loops = [loop for loop in tree.find_all(nodes.For) if _is_list(loop.iter)]
    if not all(isinstance(loop.target, nodes.Name) for loop in loops):
        return False
    items = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Getitem)):
        parent = parents.get(id(node))
        if isinstance(node, nodes.Name):
            if node.name in items | {"messages"} and not _is_harmless(node, parent):
                return False
        elif _key(node) == "content":
            if not (_is_item(node.node, items) and _is_printed(node, parents)):
                return False
        elif _key(node) in ("previtem", "nextitem") or (_is_item(node.node, items) and _key(node) in _NO_KEYS):
            return False
    return True


def _is_harmless(name: nodes.Name, parent: nodes.Node | None) -> bool:
    if isinstance(parent, nodes.For):
        return name is parent.target or name is parent.iter
    if isinstance(parent, nodes.Getattr):
        return name.name != "messages"
    if isinstance(parent, nodes.Getitem) and name is parent.node:
        return isinstance(parent.arg, nodes.Const)
    return isinstance(parent, nodes.Filter) and parent.name in ("length", "count") and name.name == "messages"


def _is_list(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "messages"


def _is_item(node: nodes.Node, items: set[str]) -> bool:
    """Whether a node is a message: a loop variable, or messages[0]."""
    if isinstance(node, nodes.Getitem):
        return _is_list(node.node) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, int)
    return isinstance(node, nodes.Name) and node.name in items


def _key(node: nodes.Getattr | nodes.Getitem) -> str | int | None:
    """Return the key that is read; None if it is computed."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node.arg, nodes.Const) else None


def _is_printed(node: nodes.Node, parents: dict[int, nodes.Node]) -> bool:
    """Whether a value is printed unchanged: only concatenated, not passed through a filter, macro or variable."""
    parent = parents[id(node)]
    while isinstance(parent, nodes.Add | nodes.Concat):
        parent = parents[id(parent)]
    if not isinstance(parent, nodes.Output):
        return False
    while not isinstance(parent, nodes.Template):
        parent = parents[id(parent)]
        if not isinstance(parent, _TRANSPARENT):
            return False
    return True
