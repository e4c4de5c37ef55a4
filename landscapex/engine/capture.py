"""A model and its loss as a graph of torch operators, by way of `torch.export`.

What cannot be captured runs on the eager engine, so every failure here is a reason and no error.
A captured graph is right for batches of every size, as far as torch can tell; that it is right at
all is for a comparison with the model itself to show (values that Python keeps from one call to
the next, and samples that are coupled along their axis, leave no trace in the graph).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import operator
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn.utils.rnn import PackedSequence

from landscapex._batch import Batch, map_leaves, sample_count, tensor_leaves
from landscapex.engine.plan import NotCapturedError, Plan, Slot
from landscapex.engine.sharing import label
from landscapex.errors import ArgumentError, LandscapexError
from landscapex.losses.measure import Measure
from landscapex.model.guard import uninterrupted
from landscapex.model.parameters import unwrap

_SIZES = (5, 7, 11, 13, 17, 19, 23, 29, 31)  # of example batches: export takes 1 for a constant
_FIXED = (str, bytes, int, float, bool, type(None))
_PREFIX = "model."  # of names inside `_Entry`
_DEPTH = 3  # levels of a module's attributes that are put back
_REASON = 200  # characters that a reason takes over from an error

aten = torch.ops.aten

# Export patches the whole process: one thread at a time.
_exporting = threading.Lock()


def _forget_lock() -> None:
    # the forked child has none of the threads that may have held it
    global _exporting
    _exporting = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


def capture(model: nn.Module, measure: Measure, batch: Batch, *, moving: Collection[str]) -> Plan:
    """Export a model together with its loss, and say what depends on what.

    The caller holds the model, in the mode in which it will be evaluated, and has run it once.

    Args:
        model: Perhaps wrapped (DataParallel, DistributedDataParallel, torch.compile).
        measure: The loss. The plan's outputs are its mean, what the model returned and the target;
            the mean alone where the loss does not show the others.
        batch: A real batch. The plan fits all batches of the same `form_of`.
        moving: First names of the parameters that some direction moves.

    Returns:
        The plan; its slots share the memory of the model.

    Raises:
        NotCapturedError: If the model needs the eager engine; says why.
    """
    inner = unwrap(model)
    notes = [] if inner is model else [f"{type(model).__name__} unwrapped"]
    _refuse_model(inner)
    call, tensors, shapes = _example(measure, batch)
    program = _export(_Entry(inner, call), tensors, shapes)
    graph, signature = program.graph, program.graph_signature
    for written in signature.output_specs:
        if written.kind is not OutputKind.USER_OUTPUT:
            raise NotCapturedError(f"forward writes {written.target} ({written.kind.name.lower()})")
    slots, slot_of, found = _slots(program, inner, moving)
    inputs = tuple(s.arg.name for s in signature.input_specs if s.kind is InputKind.USER_INPUT)
    values = label(graph, {name: slots[i].moves for name, i in slot_of.items()}, inputs)
    outputs = tuple(node.name for node in graph.output_node().args[0])
    loss = values[outputs[0]]
    if loss.shape or not loss.dtype.is_floating_point:
        raise NotCapturedError(f"the loss has shape {loss.shape} and dtype {loss.dtype}")
    return Plan(graph, values, slots, slot_of, inputs, outputs, (*notes, *found))


def form_of(batch: Batch) -> str:
    """Describe what batches must have in common to be served by one plan.

    Args:
        batch: Any batch.

    Returns:
        Containers, keys, values that are not tensors; dtypes and shapes, without the axis of
        samples.

    Example:
        >>> form_of({"x": torch.zeros(8, 3), "scale": 2.0}) == form_of(
        ...     {"x": torch.zeros(5, 3), "scale": 2.0}
        ... )
        True
    """
    count = sample_count(batch)

    def form(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return f"{type(leaf).__name__} {leaf!r}"
        own = _has_samples(leaf, count)
        shape = ["samples"] * own + list(leaf.shape[own:])
        return f"{leaf.dtype} {shape}"

    return repr(map_leaves(batch, form))


def evaluate_part(
    plan: Plan, names: Collection[str], env: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run the nodes that some values need, with torch's own operators.

    Casts and constants in float32 follow if a float32 placeholder is given in float64.

    Args:
        plan: A plan.
        names: Values of it.
        env: Tensors by the names of nodes. Placeholders of slots that do not move may be left out.

    Returns:
        The tensors by name.

    Raises:
        ArgumentError: If `env` lacks a placeholder that is needed.
    """
    wide = any(
        value.dtype is torch.float64 and plan.values[name].dtype is torch.float32
        for name, value in env.items()
    )
    done: dict[str, Any] = dict(env)
    with torch.no_grad():
        for node in _needed(plan, names, env):
            if node.op == "placeholder":
                done[node.name] = _resting(plan, node.name, wide=wide)
                continue
            target: Any = node.target
            if target is aten.view.default:  # the batch at hand may have other strides
                target = aten.reshape.default
            args, kwargs = fx.node.map_aggregate(
                (node.args, node.kwargs), lambda a: _operand(a, done, wide)
            )
            done[node.name] = target(*args, **kwargs)
    return {name: _element(done, name) for name in names}


def _needed(plan: Plan, names: Collection[str], env: Mapping[str, Tensor]) -> list[fx.Node]:
    """The nodes between `env` and `names`, in the order of the graph."""
    wanted = {name.partition(".")[0] for name in names} - set(env)
    chosen = []
    for node in reversed(plan.graph.nodes):
        if node.name in wanted:
            chosen.append(node)
            wanted |= {source.name for source in node.all_input_nodes} - set(env)
    return chosen[::-1]


def _resting(plan: Plan, name: str, *, wide: bool) -> Tensor:
    """The tensor of a slot that does not move."""
    slot = plan.slots[plan.slot_of[name]] if name in plan.slot_of else None
    if slot is None or slot.tensor is None or slot.moves:
        raise ArgumentError(f"`env` must hold a value for {name}, got none.")
    return slot.tensor.double() if wide and slot.dtype is torch.float32 else slot.tensor


def _operand(argument: Any, done: Mapping[str, Any], wide: bool) -> Any:
    if isinstance(argument, fx.Node):
        return done[argument.name]
    return torch.float64 if wide and argument is torch.float32 else argument


def _element(done: Mapping[str, Any], name: str) -> Tensor:
    node, _, element = name.partition(".")
    return done[node][int(element)] if element else done[node]


class _Entry(nn.Module):
    """What is exported: takes the batch's tensors as one tuple, returns a tuple of tensors."""

    def __init__(
        self, model: nn.Module, call: Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]
    ) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self._call(self.model, tensors)


def _refuse_model(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotCapturedError(f"{name or 'the model'} is TorchScript")
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise NotCapturedError(f"{name} is lazy: run one forward pass first")


def _has_samples(tensor: Tensor, count: int) -> bool:
    return tensor.ndim > 0 and tensor.shape[0] == count


def _example(measure: Measure, batch: Batch) -> tuple[Any, tuple[Tensor, ...], Any]:
    """(model, tensors) -> outputs; tensors of an example batch; their dynamic sizes."""

    def check(leaf: Any) -> None:
        if isinstance(leaf, PackedSequence):
            raise NotCapturedError("the batch holds a packed sequence")
        if not isinstance(leaf, (Tensor, *_FIXED)):
            raise NotCapturedError(f"the batch holds a {type(leaf).__name__}")
        if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.layout != torch.strided):
            raise NotCapturedError(f"the batch holds a tensor of layout {leaf.layout}")

    map_leaves(batch, check)
    leaves, count = tuple(tensor_leaves(batch)), sample_count(batch)
    if not leaves or not leaves[0].ndim or not count:
        raise NotCapturedError("the batch has no samples along its first axis")
    sampled = [_has_samples(leaf, count) for leaf in leaves]
    others = {n for leaf, own in zip(leaves, sampled, strict=True) for n in leaf.shape[own:]}
    size = next(n for n in itertools.chain(_SIZES, itertools.count(37, 2)) if n not in others)
    dim = Dim("batch")
    tensors = tuple(
        leaf.detach().index_select(0, torch.arange(size, device=leaf.device) % count)
        if own
        else leaf.detach()
        for leaf, own in zip(leaves, sampled, strict=True)
    )

    def call(model: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rest = iter(given)
        filled = map_leaves(batch, lambda leaf: next(rest) if isinstance(leaf, Tensor) else leaf)
        loss, outputs, targets = measure.captured(model, filled)
        return (loss, *outputs, *targets)

    return call, tensors, (tuple({0: dim} if own else None for own in sampled),)


def _export(entry: _Entry, tensors: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    try:
        # cut short while torch imports its compiler, export would fail for ever after
        with uninterrupted(), _exporting, torch.no_grad(), _quiet(), _attributes_kept(entry.model):
            program = export(entry, (tensors,), dynamic_shapes=shapes, strict=False)
            program = program.run_decompositions({})
    except LandscapexError as error:  # the measure says itself what it cannot give
        raise NotCapturedError(str(error).strip().rstrip(".")) from None
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:_REASON]
        raise NotCapturedError(f"torch.export: {type(error).__name__}: {first}") from None
    _simplify(program.graph)
    return program


def _simplify(graph: fx.Graph) -> None:
    """Take out nodes that only check, or broadcast tensors that have one shape already."""
    for node in list(graph.nodes):
        if "_assert_tensor_metadata" in str(node.target):
            graph.erase_node(node)
        elif node.target is operator.getitem:
            several, element = node.args
            if several.target is aten.broadcast_tensors.default:
                source = several.args[0][element]
                if source.meta["val"].shape == node.meta["val"].shape:
                    node.replace_all_uses_with(source)
    graph.eliminate_dead_code()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export warns, logs and prints the partial graph when it fails."""
    found = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger)
    ]
    before = [logger.disabled for logger in found]
    nowhere = io.StringIO()
    try:
        for logger in found:
            logger.disabled = True
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(nowhere),
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(found, before, strict=True):
            logger.disabled = disabled


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Take back what forward kept: a counter that moved, a cache of tensors without values."""
    before: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        _remember(vars(module), before, _DEPTH)
    try:
        yield
    finally:
        for container, content in before.values():
            if isinstance(container, (list, deque)):
                container.clear()
                container.extend(content)
            elif isinstance(container, set):
                container.clear()
                container.update(content)
            else:
                for key in [key for key in container if key not in content]:
                    del container[key]
                container.update(content)


def _remember(value: Any, found: dict[int, tuple[Any, Any]], depth: int) -> None:
    """Copy containers and attributes of plain objects, down to `depth` levels."""
    if depth == 0 or id(value) in found or isinstance(value, (Tensor, nn.Module, type)):
        return
    if isinstance(value, (dict, list, deque, set)):
        content = dict(value) if isinstance(value, dict) else list(value)
        found[id(value)] = (value, content)
        for inner in content.values() if isinstance(content, dict) else content:
            _remember(inner, found, depth - 1)
    elif isinstance(getattr(value, "__dict__", None), dict):
        _remember(vars(value), found, depth)


def _slots(
    program: ExportedProgram, model: nn.Module, moving: Collection[str]
) -> tuple[tuple[Slot, ...], dict[str, int], list[str]]:
    """One slot per memory range that the graph reads; those of placeholders; notes."""
    named = _named_memory(model)
    tensors = {name: tensor for found in named.values() for name, _, tensor in found}
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    numbers: dict[object, int] = {}
    slots: list[Slot] = []
    slot_of: dict[str, int] = {}
    notes = []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            continue
        if not node.users:
            program.graph.erase_node(node)
            continue
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise NotCapturedError(f"the graph takes a {spec.kind.name.lower()}")
        name = str(spec.target).removeprefix(_PREFIX)
        constant = spec.kind is InputKind.CONSTANT_TENSOR
        tensor = program.constants[str(spec.target)] if constant else tensors[name]
        key = _memory(tensor)
        owners = named.get(key, [(name, "constant", tensor)])
        if constant and owners[0][1] != "constant":
            notes.append(f"{name} is {owners[0][0]}")
        if key not in numbers:
            numbers[key] = len(slots)
            slots.append(_slot(owners, moving))
        slot_of[node.name] = numbers[key]
    _refuse_overlap(slots, [t for found in named.values() for n, _, t in found if n in moving])
    notes += [f"{slot.name} is also {', '.join(slot.aliases)}" for slot in slots if slot.aliases]
    return tuple(slots), slot_of, notes


def _named_memory(model: nn.Module) -> dict[object, list[tuple[str, str, Tensor]]]:
    """(name, role, tensor) of every parameter and buffer by memory; parameters come first."""
    found: dict[object, list[tuple[str, str, Tensor]]] = {}
    for role, members in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in members:
            found.setdefault(_memory(tensor), []).append((name, role, tensor))
    return found


def _memory(tensor: Tensor) -> object:
    if not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _slot(owners: list[tuple[str, str, Tensor]], moving: Collection[str]) -> Slot:
    (name, role, tensor), *others = owners
    return Slot(
        name=name,
        aliases=tuple(other for other, _, _ in others),
        role=role,
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        moves=any(owner in moving for owner, _, _ in owners),
        tensor=tensor.detach(),
    )


def _refuse_overlap(slots: list[Slot], moving: list[Tensor]) -> None:
    """Memory that moves under another shape (a view of a parameter) would seem to stand still."""
    for slot in slots:
        assert slot.tensor is not None
        for tensor in moving:
            if _memory(slot.tensor) != _memory(tensor) and _share_range(slot.tensor, tensor):
                raise NotCapturedError(f"{slot.name} shares part of its memory with a parameter")


def _share_range(a: Tensor, b: Tensor) -> bool:
    if not a.numel() or not b.numel() or a.device != b.device:
        return False
    (first, last), (start, end) = _range(a), _range(b)
    return first < end and start < last


def _range(tensor: Tensor) -> tuple[int, int]:
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (reach + 1) * tensor.element_size()
