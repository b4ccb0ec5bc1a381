"""Python, packages and native kernels: installed as pyproject.toml allows, and loadable."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deploy.doctor.finding import Finding, fail, ok, warn
from engine.native.build import is_whole, library_path
from engine.native.library import NativeLibrary

AREA = "software"
_EXTRAS = ("ray", "gpu", "tracing")  # what a user may have asked for; the developers' own is not looked at
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def check_software(wanted_extras: Iterable[str] = ()) -> list[Finding]:
    """Everything that is installed; `wanted_extras` must be complete."""
    return [*check_python(), *check_packages(frozenset(wanted_extras)), check_kernels(library_path()), check_cpu()]


def check_python(version: str = platform.python_version()) -> list[Finding]:
    try:
        allowed = str(metadata.metadata("pdserve")["Requires-Python"])
    except metadata.PackageNotFoundError:
        return [warn(AREA, "pdserve", "not installed as a package", "`make env`, or pip install; versions are unknown")]
    if not SpecifierSet(allowed).contains(version, prereleases=True):
        return [fail(AREA, "Python", f"{version}, not {allowed}", f"make a virtual environment of Python {allowed}")]
    return [ok(AREA, "Python", f"{version} ({allowed})")]


def check_packages(wanted_extras: frozenset[str], required: Iterable[str] | None = None) -> list[Finding]:
    """Each that is missing or of another version; one line when none is. `required` stands for pdserve's own list."""
    if required is None:
        try:
            required = metadata.requires("pdserve") or []
        except metadata.PackageNotFoundError:
            return []
    requirements = [one for one in map(Requirement, required) if _concerns_users(one)]
    found = [_check_package(one, wanted_extras) for one in requirements]
    wrong = [finding for finding in found if finding is not None]
    return [*wrong, ok(AREA, "packages", f"{len(found) - len(wrong)} as pyproject.toml allows")]


def _concerns_users(requirement: Requirement) -> bool:
    """Not for another system, nor for developers alone."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *_EXTRAS))


def _check_package(requirement: Requirement, wanted_extras: frozenset[str]) -> Finding | None:
    """What is wrong with it; None: nothing, or it is not there and nobody asked for it."""
    extra = next((one for one in _EXTRAS if _is_for(requirement, one)), None)
    needed = extra is None or extra in wanted_extras
    hint = f"pip install '{f'pdserve[{extra}]' if extra else f'{requirement.name}{requirement.specifier}'}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        said = f"missing, {requirement.specifier} is needed"
        return fail(AREA, requirement.name, said, hint) if needed else None
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return (fail if needed else warn)(AREA, requirement.name, f"{version}, not {requirement.specifier}", hint)


def _is_for(requirement: Requirement, extra: str) -> bool:
    """Whether it is there for that extra only."""
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def check_kernels(library: Path) -> Finding:
    """The engine's own kernels for this CPU: built, whole, and accepted by the loader."""
    hint = "python -m engine.native builds them (a C++ compiler is needed); until then torch computes, more slowly"
    if not is_whole(library):
        return warn(AREA, "native kernels", "damaged" if library.exists() else "not built for this CPU", hint)
    try:
        NativeLibrary(library, 1).close()
    except (OSError, AttributeError) as error:
        return warn(AREA, "native kernels", f"do not load: {error}", hint)
    return ok(AREA, "native kernels", "built and loaded")


def check_cpu(text: str | None = None) -> Finding:
    """What of the CPU the kernels can use; `text` stands for /proc/cpuinfo."""
    if text is None:
        text = Path("/proc/cpuinfo").read_text()
    lines = [line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))]
    has = [name for name in _FEATURES if lines and name in lines[0]]
    said = f"{platform.machine()}: {', '.join(has) or 'none of ' + ', '.join(_FEATURES)}"
    if platform.machine() == "x86_64" and "avx512f" not in has:
        return warn(AREA, "CPU", said, "without AVX-512 prompts are computed several times slower")
    return ok(AREA, "CPU", said)
