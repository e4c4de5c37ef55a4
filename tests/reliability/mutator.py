"""Small changes to a source, one at a time, and which of its blocks a test enters.

What cannot matter is left alone by rule: docstrings, annotations and aliases of types, imports,
`__all__`, text for people (with a blank in it, or in an error or a warning), `strict=` of zip and
`frozen=` of dataclasses (assertions), and whatever is done to other processes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.Break: ast.Continue, ast.Continue: ast.Break,
}  # fmt: skip
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any"}
TELLS = {"fail", "warn", "refuse_run"}  # functions whose texts are for people
TYPE_NAME = re.compile(r"[A-Z][a-z]\w*|[A-Z]")  # constants are in capitals, functions are not
MARK = "__import__('touched').enter({file!r}, {block})"


@dataclass(frozen=True)
class Change:
    """One small change.

    Attributes:
        line: Where.
        function: In which it is; "" outside of all.
        block: Number of the block of statements within functions; None outside.
        names: That are assigned to, if it is outside of functions.
        old: What is there.
        new: What is there instead; "" for nothing.
        make: Makes it in the tree that it was found in.
    """

    line: int
    function: str
    block: int | None
    names: frozenset[str]
    old: str
    new: str
    make: Callable[[], None]


@dataclass(frozen=True)
class _Place:
    function: str = ""
    block: int | None = None
    names: frozenset[str] = frozenset()
    told: bool = False  # within an error or a warning


def changes(tree: ast.Module) -> list[Change]:
    """All changes, in the order of the source."""
    return list(_Finder(_blocks(tree)).under(tree, _Place()))


def changed(source: str, number: int) -> str:
    """The source with one of its changes made."""
    tree = ast.parse(source)
    changes(tree)[number].make()
    return ast.unparse(tree)


def marked(source: str, file: str) -> str:
    """The source with every block of its functions saying that it is entered."""
    tree = ast.parse(source)
    for number, block in enumerate(_blocks(tree)):
        begin = 1 if _is_text(block[0]) else 0
        block.insert(begin, ast.parse(MARK.format(file=file, block=number)).body[0])
    return ast.unparse(tree)


def users(source: str, names: frozenset[str]) -> set[int]:
    """The blocks that read one of some names."""
    return {
        number
        for number, block in enumerate(_blocks(ast.parse(source)))
        for statement in block
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id in names
    }


def _blocks(tree: ast.Module) -> list[list[ast.stmt]]:
    """Lists of statements within functions, from the outside to the inside."""
    found: list[list[ast.stmt]] = []

    def look(node: ast.AST, inside: bool) -> None:
        inside |= isinstance(node, ast.FunctionDef)
        for _, value in ast.iter_fields(node):
            many = isinstance(value, list)
            if many and inside and value and isinstance(value[0], ast.stmt):
                found.append(value)
            for child in value if many else [value]:
                if isinstance(child, ast.AST):
                    look(child, inside)

    look(tree, False)
    return found


class _Finder:
    def __init__(self, blocks: list[list[ast.stmt]]) -> None:
        self._numbers = {id(block): number for number, block in enumerate(blocks)}

    def under(self, node: ast.AST, place: _Place) -> Iterator[Change]:
        """The changes below a node."""
        for field, value in ast.iter_fields(node):
            if _is_type(node, field):
                continue
            if not isinstance(value, list):
                if isinstance(value, ast.AST):
                    yield from self._at(value, place, _setter(node, field))
                continue
            block = self._numbers.get(id(value), place.block)
            for i, child in enumerate(value):
                if isinstance(child, ast.AST):
                    here = replace(place, block=block)
                    yield from self._at(child, here, _item_setter(value, i))

    def _at(self, node: ast.AST, place: _Place, put: Callable[..., None]) -> Iterator[Change]:
        if _is_left_alone(node):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{place.function}.{node.name}".lstrip(".")
            block = place.block
            if isinstance(node, ast.FunctionDef):  # defaults and decorators show when it is called
                block = self._numbers[id(node.body)]
            place = replace(place, function=name, block=block)
        if isinstance(node, ast.Assign | ast.AnnAssign) and place.block is None:
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _stored(n)}
            place = replace(place, names=frozenset(names))
        if isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and _name(node.func) in TELLS
        ):
            place = replace(place, told=True)
        for new, made in _instead(node, place.told):
            yield self._change(node, new, place, lambda made=made: put(made))
        for field in ("decorator_list", "keywords"):
            for i, part in enumerate(getattr(node, field, [])):
                if _is_left_alone(part) or _is_flag(part):
                    continue
                without = _remover(getattr(node, field), i)
                yield self._change(part, "", place, without)
        yield from self.under(node, place)

    def _change(self, node: ast.AST, new: str, place: _Place, make: Callable[[], None]) -> Change:
        line = getattr(node, "lineno", 0)
        old, new = (text.partition("\n")[0] for text in (ast.unparse(node), new))
        return Change(line, place.function, place.block, place.names, old, new, make)


def _instead(node: ast.AST, told: bool) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in the place of a node, as text and as a node."""
    for new in _nodes_instead(node, told):
        yield ast.unparse(new), new


def _nodes_instead(node: ast.AST, told: bool) -> Iterator[ast.AST]:
    none = ast.Constant(None)
    match node:
        case ast.Compare(left, ops, right):
            for i, op in enumerate(ops):
                yield ast.Compare(left, [*ops[:i], SWAPPED[type(op)](), *ops[i + 1 :]], right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(SWAPPED[type(op)](), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.BinOp(left, op, right):
            yield ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.AugAssign(target, op, value):
            yield ast.AugAssign(target, SWAPPED[type(op)](), value)
        case ast.Constant(value):
            yield from _other_constants(value, told)
        case ast.Call(ast.Name(name), arguments, keywords) if name in RENAMED:
            yield ast.Call(ast.Name(RENAMED[name]), arguments, keywords)
        case ast.If(test, body, orelse) if not _has_opposite(test):
            yield ast.If(_negated(test), body, orelse)
        case ast.While(test, body, orelse) if not isinstance(test, ast.Constant):
            yield ast.While(_negated(test), body, orelse)
        case ast.IfExp(test, body, orelse) if not _has_opposite(test):
            yield ast.IfExp(_negated(test), body, orelse)
        case ast.comprehension(target, source, [_, *_] as conditions):
            both = conditions[0] if len(conditions) == 1 else ast.BoolOp(ast.And(), conditions)
            yield ast.comprehension(target, source, [_negated(both)], node.is_async)
        case ast.Break() | ast.Continue():
            yield SWAPPED[type(node)]()
        case ast.Return(value) if value is not None and not _is_none(value):
            yield ast.Return(none)
        case ast.Assign(targets, value) if not _is_none(value):
            yield ast.Assign(targets, none, lineno=node.lineno)
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.ExceptHandler(kind, name, body) if kind is not None:
            yield ast.ExceptHandler(ast.Tuple([], ast.Load()), name, body)


def _other_constants(value: object, told: bool) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int | float):
        yield ast.Constant(value + 1)
    elif isinstance(value, bytes):
        yield ast.Constant(b"XX" + value)
    elif isinstance(value, str) and not told and " " not in value:
        yield ast.Constant("XX" + value)


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _has_opposite(test: ast.expr) -> bool:
    """Whether one of the changes within a condition turns it into its opposite anyway."""
    match test:
        case ast.UnaryOp(ast.Not()):
            return True
        case ast.Compare(_, [op], _):
            return not isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
    return False


def _setter(node: ast.AST, field: str) -> Callable[..., None]:
    return lambda new: setattr(node, field, new)


def _item_setter(values: list[ast.AST], i: int) -> Callable[..., None]:
    return lambda new: values.__setitem__(i, new)


def _remover(values: list[ast.AST], i: int) -> Callable[[], None]:
    return lambda: values.__delitem__(i)


def _is_type(node: ast.AST, field: str) -> bool:
    """Whether a field of a node only holds types."""
    match node:
        case ast.Call(ast.Name("isinstance" | "issubclass")):
            return field == "args"
    return field in ("annotation", "returns")


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Constant(None):
            return True
        case ast.Expr(ast.Constant()):
            return True  # a docstring
        case ast.If(ast.Name("TYPE_CHECKING")):
            return True
        case ast.Assign([ast.Name(name)], _):
            return name == "__all__" or TYPE_NAME.fullmatch(name) is not None
        case ast.Call(ast.Attribute(ast.Name("os"), "kill")):
            return True  # with another signal, it would be one
        case ast.Call(ast.Name("cast")):
            return True
        case ast.keyword("strict" | "frozen"):
            return True  # assertions; test_layout.py asks all dataclasses whether they are frozen
        case ast.JoinedStr(values):
            return any(isinstance(v, ast.Constant) and " " in str(v.value) for v in values)
    return False


def _is_flag(node: ast.AST) -> bool:
    """Whether the argument is True or False, which is turned over anyway."""
    match node:
        case ast.keyword(_, ast.Constant(bool())):
            return True
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
