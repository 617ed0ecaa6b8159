"""A function of JAX as an ONNX program: its trace, operation by operation.

The trace is JAX's own, with the plain version of each operation (`vse_jax.ops.plain`),
so nothing of a model is written twice. What depends on the weights alone is computed
here, such as the weights that a GPO generates: only what depends on inputs is left.

jax2onnx does more than this, and cannot be installed beside a current Orbax.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
from jax import export
from jax.extend.core import Literal
from onnx import helper, numpy_helper

from vse_jax.base.errors import InputError
from vse_jax.data.collate import Shapes
from vse_jax.ops import plain

_OPSET = 18
_BATCH = "batch"
# An equation's input or output: an array, which is known, or the name of a value.
Value = Any


def onnx_program(
    run: Callable[..., jax.Array], inputs: Shapes, output: str
) -> onnx.ModelProto:
    """`run`, a function of arrays with any number of rows, as an ONNX program.

    Args:
        run: called with the inputs in their order; gives an array with the same rows.
        inputs: names, shapes and dtypes; the first dimension stands for any size.
        output: name of the result.

    Raises:
        InputError: `run` uses an operation that is not in the tables below (an encoder
            or a pooling of your own may); names it.
    """
    (batch,) = export.symbolic_shape(_BATCH)
    shapes = [
        jax.ShapeDtypeStruct((batch, *shape[1:]), dtype)
        for shape, dtype in inputs.values()
    ]
    with plain():
        closed = jax.make_jaxpr(run)(*shapes)
    graph = _Graph(next(iter(inputs)))
    (result,) = graph.evaluate(closed.jaxpr, closed.consts, list(inputs))
    graph.add("Identity", result, outputs=[output])
    made = helper.make_graph(
        graph.nodes,
        "encoder",
        [_described(*of) for of in zip(inputs, closed.in_avals, strict=True)],
        [_described(output, closed.out_avals[0])],
        graph.constants,
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(made, opset_imports=[opset], ir_version=9)


def save(program: onnx.ModelProto, file: Path) -> None:
    """Writes a program, and its weights into a file beside it, FILE.data."""
    onnx.save_model(
        program,
        file,
        save_as_external_data=True,
        location=f"{file.name}.data",
        size_threshold=1024,
    )


def _described(name: str, aval: Any) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in aval.shape]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    return helper.make_tensor_value_info(name, kind, shape)


class _Graph:
    """Nodes and constants, as equations add them."""

    def __init__(self, first: str):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[int, tuple[str, Value]] = {}
        self._count = 0
        self._rows = self.add("Shape", first, start=0, end=1)

    def new_name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def name(self, value: Value) -> str:
        """Of a value; a known one becomes a constant."""
        if isinstance(value, str):
            return value
        if id(value) not in self._names:
            name = self.new_name()
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
            self._names[id(value)] = name, value  # kept: ids may be used again
        return self._names[id(value)][0]

    def numbers(self, values: Iterable[Any]) -> str:
        return self.name(np.array(list(values), np.int64))

    def add(
        self, kind: str, *inputs: Value, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Adds a node; returns the name of its first output."""
        outputs = outputs or [self.new_name()]
        names = [self.name(value) for value in inputs]
        self.nodes.append(helper.make_node(kind, names, outputs, **attributes))
        return outputs[0]

    def evaluate(self, jaxpr: Any, consts: Sequence, inputs: Sequence) -> list[Value]:
        """The outputs of a jaxpr, whose equations become nodes."""
        given = [*jaxpr.constvars, *jaxpr.invars]
        values = dict(zip(given, [*consts, *inputs], strict=True))

        def read(variable: Any) -> Value:
            if isinstance(variable, Literal):
                aval: Any = variable.aval
                return np.asarray(variable.val, aval.dtype)
            return values[variable]

        for equation in jaxpr.eqns:
            found = self._evaluated(equation, [read(v) for v in equation.invars])
            values.update(zip(equation.outvars, found, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _evaluated(self, equation: Any, inputs: list[Value]) -> list[Value]:
        primitive, params = equation.primitive, equation.params
        if primitive.name in _CALLS:
            called = params[_CALLS[primitive.name]]
            return self.evaluate(called.jaxpr, called.consts, inputs)
        known = not any(isinstance(value, str) for value in inputs)
        if known and all(_is_fixed(v.aval.shape) for v in equation.outvars):
            found = primitive.bind(*inputs, **primitive.get_bind_params(params))
            return list(found) if primitive.multiple_results else [found]
        if primitive.name in _NODES:
            return [self.add(_NODES[primitive.name], *inputs)]
        if primitive.name not in _WAYS:
            raise InputError(
                f"ONNX: {primitive.name!r}, an operation of JAX that the encoder or "
                "its pooling uses, has no translation here"
            )
        result = _WAYS[primitive.name](self, equation, *inputs)
        return list(result) if primitive.multiple_results else [result]

    # What several operations need

    def reshaped(self, x: Value, shape: Sequence) -> Value:
        if not isinstance(x, str):
            return np.reshape(np.asarray(x), shape)
        sizes = [size if isinstance(size, int) else -1 for size in shape]
        return self.add("Reshape", x, self.numbers(sizes))

    def transposed(self, x: Value, order: Sequence[int]) -> Value:
        if list(order) == sorted(order):
            return x
        if not isinstance(x, str):
            return np.transpose(np.asarray(x), order)
        return self.add("Transpose", x, perm=list(order))

    def sizes(self, shape: Sequence) -> str:
        """A shape as a value; what is not fixed is the number of rows."""
        parts = [self.numbers([s]) if isinstance(s, int) else self._rows for s in shape]
        return self.add("Concat", *parts, axis=0)


def _is_fixed(shape: Sequence) -> bool:
    return all(isinstance(size, int) for size in shape)


# ---- What an equation becomes --------------------------------------------------------

# Functions that are called: where their jaxpr is.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}
_CALLS["custom_vjp_call"] = "call_jaxpr"
# One node with the same inputs.
_NODES = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",  # of truth values only
    "ceil": "Ceil",
    "copy": "Identity",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "is_nan": "IsNaN",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "optimization_barrier": "Identity",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "sub": "Sub",
    "tanh": "Tanh",
}


def _argmax(graph, equation, x):
    (axis,) = equation.params["axes"]
    if equation.invars[0].aval.dtype == bool:
        x = graph.add("Cast", x, to=onnx.TensorProto.INT32)
    found = graph.add("ArgMax", x, axis=axis, keepdims=0)
    return _cast(graph, equation, found)


def _broadcast(graph, equation, x, *_):
    """Dimensions of size 1, then larger ones; 1 leaves what is larger already."""
    shape, own = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    between = [1] * len(shape)
    for dimension, size in zip(own, before, strict=True):
        between[dimension] = size
    if tuple(between) != tuple(before):
        x = graph.reshaped(x, between)
    wanted = [
        1 if now == then else then for now, then in zip(between, shape, strict=True)
    ]
    return x if set(wanted) <= {1} else graph.add("Expand", x, graph.sizes(wanted))


def _cast(graph, equation, x, *_):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.outvars[0].aval.dtype))
    return graph.add("Cast", x, to=kind)


def _convolution(graph, equation, x, kernel):
    p = equation.params
    if p["batch_group_count"] != 1 or set(p["lhs_dilation"]) != {1}:
        raise InputError("ONNX: a transposed convolution has no translation here")
    x_order, kernel_order, order = p["dimension_numbers"]
    y = graph.add(
        "Conv",
        graph.transposed(x, x_order),
        graph.transposed(kernel, kernel_order),
        strides=p["window_strides"],
        pads=[before for before, _ in p["padding"]] + [n for _, n in p["padding"]],
        dilations=p["rhs_dilation"],
        group=p["feature_group_count"],
    )
    return graph.transposed(y, np.argsort(order).tolist())


def _gather(graph, equation, x, indices):
    """x[:, i], x[:, i : i + n], `take_along_axis` behind leading dimensions."""
    of, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, where = (v.aval.shape for v in equation.invars)
    batch, axis = of.operand_batching_dims, of.start_index_map[0]
    others = [n for n in range(len(shape)) if n != axis and n not in batch]
    whole = all(sizes[n] == shape[n] for n in others)
    leading = list(range(len(batch)))
    rank = len(equation.outvars[0].aval.shape)
    if whole and where == (1,) and not of.collapsed_slice_dims:
        kind = equation.invars[1].aval.dtype
        steps = graph.add("Add", indices, np.arange(sizes[axis], dtype=kind))
        return graph.add("Gather", x, steps, axis=axis)
    whole = whole and of.collapsed_slice_dims == of.start_index_map == (axis,)
    if not whole or list(batch) != leading or (batch and axis != len(batch)):
        raise InputError("ONNX: a gather of this form has no translation here")
    if batch:
        indices = graph.add("Cast", indices, to=onnx.TensorProto.INT64)
        return graph.add("GatherND", x, indices, batch_dims=len(batch))
    found = graph.add("Gather", x, graph.reshaped(indices, where[:-1]), axis=axis)
    # ONNX puts the dimensions of the indices where the axis was.
    inserted = range(axis, axis + len(where) - 1)
    of_x = iter(n for n in range(rank) if n not in inserted)
    of_indices = iter(inserted)
    order = [next(of_x if n in of.offset_dims else of_indices) for n in range(rank)]
    return graph.transposed(found, order)


def _integer_pow(graph, equation, x):
    y = equation.params["y"]
    return graph.add("Pow", x, np.asarray(y, equation.invars[0].aval.dtype))


def _iota(graph, equation):
    p = equation.params
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = size = p["shape"][p["dimension"]]
    values = np.arange(size, dtype=p["dtype"]).reshape(shape)
    return graph.add("Expand", values, graph.sizes(p["shape"]))


def _is_finite(graph, equation, x):
    bad = graph.add("Or", graph.add("IsNaN", x), graph.add("IsInf", x))
    return graph.add("Not", bad)


def _pad(graph, equation, x, value):
    low, high, inner = zip(*equation.params["padding_config"], strict=True)
    if any(inner):
        raise InputError("ONNX: padding between values has no translation here")
    return graph.add("Pad", x, graph.numbers([*low, *high]), value)


def _product(graph, equation, x, y):
    (x_sum, y_sum), (x_batch, y_batch) = equation.params["dimension_numbers"]
    ranks = [len(v.aval.shape) for v in equation.invars]
    x_free, y_free = (
        [n for n in range(rank) if n not in (*sums, *batch)]
        for rank, sums, batch in zip(
            ranks, (x_sum, y_sum), (x_batch, y_batch), strict=True
        )
    )
    one_each = len(x_free) == 1 or not x_batch
    if len(x_sum) == len(y_free) == 1 and one_each and x_free:
        x = graph.transposed(x, [*x_batch, *x_free, *x_sum])
        return graph.add("MatMul", x, graph.transposed(y, [*y_batch, *y_sum, *y_free]))
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    x_names, y_names = ([""] * rank for rank in ranks)
    for pairs in (zip(x_batch, y_batch, strict=True), zip(x_sum, y_sum, strict=True)):
        for a, b in pairs:
            x_names[a] = y_names[b] = next(letters)
    for names, free in ((x_names, x_free), (y_names, y_free)):
        for n in free:
            names[n] = next(letters)
    result = [x_names[n] for n in (*x_batch, *x_free)] + [y_names[n] for n in y_free]
    form = f"{''.join(x_names)},{''.join(y_names)}->{''.join(result)}"
    return graph.add("Einsum", x, y, equation=form)


def _reduce(kind):
    def reduce(graph, equation, x):
        axes = graph.numbers(equation.params["axes"])
        return graph.add(kind, x, axes, keepdims=0)

    return reduce


def _reshape(graph, equation, x, *_):
    return graph.reshaped(x, equation.outvars[0].aval.shape)


def _reverse(graph, equation, x):
    axes = equation.params["dimensions"]
    bounds = [[-1] * len(axes), [np.iinfo(np.int64).min] * len(axes), axes]
    steps = graph.numbers([-1] * len(axes))
    return graph.add("Slice", x, *map(graph.numbers, bounds), steps)


def _scan(graph, equation, *inputs):
    """Step by step: sequences have a fixed length, and OpenVINO reads no ONNX loop."""
    p = equation.params
    body, consts, carries = p["jaxpr"], p["num_consts"], p["num_carry"]
    state, sequences = inputs[consts : consts + carries], inputs[consts + carries :]
    results = {}
    order = range(p["length"])
    for step in reversed(order) if p["reverse"] else order:
        place = np.int64(step)
        now = [graph.add("Gather", x, place, axis=0) for x in sequences]
        given = [*inputs[:consts], *state, *now]
        found = graph.evaluate(body.jaxpr, body.consts, given)
        state, results[step] = found[:carries], found[carries:]
    columns = zip(*(results[step] for step in order), strict=True)
    return [*state, *(_stacked(graph, column, 0) for column in columns)]


def _select(graph, equation, which, *cases):
    if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
        raise InputError("ONNX: a choice among several arrays has no translation here")
    return graph.add("Where", which, cases[1], cases[0])


def _slice(graph, equation, x):
    p = equation.params
    shape = equation.invars[0].aval.shape
    starts, ends = p["start_indices"], p["limit_indices"]
    strides = p["strides"] or [1] * len(shape)
    # Of a whole dimension, which may be the number of rows, nothing is said.
    axes = [
        n
        for n, size in enumerate(shape)
        if (starts[n], strides[n]) != (0, 1) or ends[n] != size
    ]
    bounds = ([values[n] for n in axes] for values in (starts, ends))
    of_axes = graph.numbers(axes), graph.numbers([strides[n] for n in axes])
    return graph.add("Slice", x, *map(graph.numbers, bounds), *of_axes)


def _sort(graph, equation, *operands):
    if len(operands) != 1:
        raise InputError("ONNX: a sort of several arrays has no translation here")
    axis = equation.params["dimension"]
    size = graph.numbers([equation.invars[0].aval.shape[axis]])
    outputs = [graph.new_name(), graph.new_name()]
    graph.add("TopK", operands[0], size, outputs=outputs, axis=axis, largest=0)
    return outputs[:1]


def _split(graph, equation, x):
    sizes = list(map(int, equation.params["sizes"]))
    outputs = [graph.new_name() for _ in sizes]
    axis = equation.params["axis"]
    graph.add("Split", x, graph.numbers(sizes), outputs=outputs, axis=axis)
    return outputs


def _stacked(graph, parts, axis):
    at = graph.numbers([axis])
    parts = [graph.add("Unsqueeze", part, at) for part in parts]
    return graph.add("Concat", *parts, axis=axis)


# Called with the graph, the equation and its inputs; gives the result.
_WAYS: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "clamp": lambda g, _, least, x, most: g.add("Min", g.add("Max", x, least), most),
    "concatenate": lambda g, e, *x: g.add("Concat", *x, axis=e.params["dimension"]),
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "dot_general": _product,
    "erfc": lambda g, _, x: g.add("Sub", np.float32(1), g.add("Erf", x)),
    "expand_dims": _reshape,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "iota": _iota,
    "is_finite": _is_finite,
    "pad": _pad,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reshape": _reshape,
    "rev": _reverse,
    "rsqrt": lambda g, _, x: g.add("Reciprocal", g.add("Sqrt", x)),
    "scan": _scan,
    "select_n": _select,
    "slice": _slice,
    "sort": _sort,
    "split": _split,
    "square": lambda g, _, x: g.add("Mul", x, x),
    "squeeze": _reshape,
    "stack": lambda g, e, *x: _stacked(g, x, e.params["axis"]),
    "transpose": lambda g, e, x: g.transposed(x, e.params["permutation"]),
}
