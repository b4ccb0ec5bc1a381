"""Arrays without reference counts, for inside one compiled run."""

from __future__ import annotations

from typing import Any

from numba.core import cgutils
from numba.extending import intrinsic

from placement.simulator.fast.records import Records


@intrinsic
def unowned(_: Any, array: Records) -> Any:
    """The same array, which numba does not count references to: the caller of the compiled code keeps it alive.

    Counting took half of a run: a locked instruction twice for every array that every function is given.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        return view._getvalue()

    return array(array), code
