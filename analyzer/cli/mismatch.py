"""The note after the traceback of a shortcut whose two operands have different shapes."""

import ast
import contextlib
import inspect
import io
import linecache
import re
import sys
from collections.abc import Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

__all__ = ["shortcut_mismatch"]

_MESSAGE = re.compile(
    r"The size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton "
    r"dimension (\d+)"
)
_ADDS = {"add", "add_", "sub", "sub_", "subtract", "lerp", "addcmul"}
Shape = Sequence[int]


def shortcut_mismatch(error: BaseException | None) -> str | None:
    """Return a note about an addition in a module's forward whose operands do not match.

    All that it says comes from the frames of the traceback: nothing watches while the model runs.

    Args:
        error: What ended the program.

    Returns:
        One sentence with the module, the two shapes and the usual fixes; None for other errors.
    """
    torch = sys.modules.get("torch")
    match = _MESSAGE.search(str(error)) if isinstance(error, RuntimeError) else None
    if torch is None or match is None or error is None:
        return None
    places = [place for place in _places(error.__traceback__) if not _is_torch(place[0])]
    modules = [frame for frame, _ in places if isinstance(_self_of(frame), torch.nn.Module)]
    if not modules:
        return None
    operands = _operands(*places[-1])
    if operands is None:
        return None
    sizes, dimension = (int(match[1]), int(match[2])), int(match[3])
    shapes = [_shape(operand, places[-1][0]) for operand in operands]
    shown = [_shown(shape, size) for shape, size in zip(shapes, sizes, strict=True)]
    name = _module_name(error.__traceback__, _self_of(modules[-1]))
    return (
        f"in '{name}' the two operands of the shortcut do not match: {shown[0]} and "
        f"{shown[1]} differ at dimension {dimension}. {_fixes(sizes, shapes)}"
    )


def _places(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    """Yield frame and instruction of each line of a traceback, outermost first."""
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lasti
        traceback = traceback.tb_next


def _is_torch(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in ("torch", "analyzer")


def _self_of(frame: FrameType) -> Any:
    """Return the object whose method a frame runs, whatever the method calls it; else None."""
    code = frame.f_code
    if "self" in frame.f_locals:
        return frame.f_locals["self"]
    first = frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
    if not code.co_argcount and code.co_flags & inspect.CO_VARARGS:
        first = next(iter(frame.f_locals[code.co_varnames[code.co_kwonlyargcount]]), None)
    # A function that is given a model, such as ``train(model)``, is no method of it.
    method = inspect.unwrap(getattr(first, code.co_name, None) or _self_of)
    return first if getattr(method, "__code__", None) is code else None


def _module_name(traceback: TracebackType | None, module: Any) -> str:
    """Return the path of a module in the outermost model of the traceback; its class for the root.

    Args:
        traceback: The whole traceback.
        module: The module whose code failed.
    """
    torch = sys.modules["torch"]
    for frame, _ in _places(traceback):
        root = _self_of(frame)
        if isinstance(root, torch.nn.Module):
            for path, part in root.named_modules():
                if part is module:
                    return f"{path} ({type(module).__name__})" if path else type(module).__name__
    return type(module).__name__


def _operands(frame: FrameType, instruction: int) -> tuple[ast.expr, ast.expr] | None:
    """Return the two expressions that an instruction adds; None where it adds nothing."""
    source = _source(frame, instruction).strip()
    # A piece of an expression over several lines is one only inside of parentheses.
    for statement in (source, f"({source})"):
        with contextlib.suppress(SyntaxError):
            node = ast.parse(statement).body[0]
            return _added(node.value if isinstance(node, ast.Expr) else node)
    return None


def _source(frame: FrameType, instruction: int) -> str:
    """Return the piece of source code that an instruction stands for."""
    first, last, start, end = list(frame.f_code.co_positions())[instruction // 2]
    if first is None or last is None or start is None or end is None:
        return ""
    lines = [
        linecache.getline(frame.f_code.co_filename, number).encode()
        for number in range(first, last + 1)
    ]
    if not lines:
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode("utf-8", "replace")


def _added(node: ast.AST) -> tuple[ast.expr, ast.expr] | None:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return node.left, node.right
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
        target = ast.parse(ast.unparse(node.target), mode="eval").body
        return target, node.value
    if isinstance(node, ast.Call):
        function = node.func
        named = function.attr if isinstance(function, ast.Attribute) else ""
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        if named in _ADDS and isinstance(function, ast.Attribute):
            is_torch = isinstance(function.value, ast.Name) and function.value.id == "torch"
            values = values if is_torch else [function.value, *values]
            return (values[0], values[1]) if len(values) > 1 else None
    return None


def _shown(shape: Shape | None, size: int) -> str:
    """Return a shape as text; where it is unknown, the size that the message gives."""
    return str(list(shape)) if shape is not None and size in shape else f"[…, {size}, …]"


def _shape(expression: ast.expr, frame: FrameType) -> Shape | None:
    """Return the shape of an operand.

    One that is a variable is still there. Another was computed on the way, and is computed again,
    without gradient and in silence: the program has ended, and only its shape is looked at.
    """
    torch = sys.modules["torch"]
    code = compile(ast.Expression(expression), "<operand>", "eval")
    silent = io.StringIO()
    try:
        with (
            torch.no_grad(),
            contextlib.redirect_stdout(silent),
            contextlib.redirect_stderr(silent),
        ):
            value = eval(code, frame.f_globals, frame.f_locals)
    except Exception:  # what it needs is gone: the size in the message is what there is to say
        return None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _fixes(sizes: tuple[int, int], shapes: Sequence[Shape | None]) -> str:
    """Return the usual fixes of a mismatch; the stride where both image sizes are known."""
    one, other = shapes
    stride = "with stride=s where the image shrinks by s"
    if one is not None and other is not None and len(one) == len(other) == 4:
        if one[2:] == other[2:]:
            stride = "with stride=1, for the image has one size on both sides"
        else:
            step = max(one[2], other[2]) / max(min(one[2], other[2]), 1)
            if step == int(step):
                stride = f"with stride={int(step)}, for the image shrinks by {int(step)}"
    return (
        f"Usual fixes, on the side of the shortcut: a 1x1 convolution to the other side's "
        f"channels, {stride} (for features a linear layer); zero padding of the channels that are "
        f"missing (functional.pad, after x[:, :, ::s, ::s]); or equal sizes ({sizes[0]} and "
        f"{sizes[1]} here) on both sides from the start."
    )
