"""What `pdserve profile` prints of a profile."""

from __future__ import annotations

from dataclasses import asdict

from placement.latency.fitted_profile import Profile
from placement.simulator.cluster import Jitter

_SHOWN = ("prefill", "decode", "mixed", "all")


def report(profile: Profile) -> list[str]:
    """For people."""
    lines = [
        f"{len(profile.points)} kinds of step, {sum(point.repeats for point in profile.points)} timed"
        + ("" if profile.complete else "; NOT the whole grid: give more --budget-s")
    ]
    lines.append("  error of the fit (median, P90): at the measured points; at points left out (5-fold)")
    for fit, kinds in profile.seen.items():
        for kind in (one for one in _SHOWN if one in kinds):
            held = profile.held_out.get(fit, {}).get(kind)
            left_out = "too few points" if held is None else f"{held.median:6.1%} {held.p90:6.1%}"
            lines.append(f"  {fit:<10} {kind:<8} {kinds[kind].median:6.1%} {kinds[kind].p90:6.1%}   {left_out}")
    c = profile.linear.coefficients
    lines.append(
        f"  a step: {1e3 * c.base_s:.3g} ms + {1e6 * c.per_prefill_token_s:.3g} us a prompt token + "
        f"{1e6 * c.per_decode_sequence_s:.3g} us a decode + {1e9 * c.per_context_token_s:.3g} ns a context token"
    )
    if (transfer := profile.linear.transfer) is not None:
        rate = f"{transfer.bytes_per_s / 1e9:.3g} GB/s"
        lines.append(f"  transfer over {profile.transport}: {1e3 * transfer.latency_s:.3g} ms + bytes at {rate}")
    for what, delays in (("split", profile.delays), ("colocated", profile.colocated_delays)):
        if delays is not None:
            shown = ", ".join(
                f"{name.removesuffix('_s')} {1e3 * value:.3g} ms" for name, value in asdict(delays).items()
            )
            lines.append(f"  delays, {what}: {shown}")
    lines += _served_lines(profile)
    lines.append(f"  simulators will use: {profile.best_fit}; swap is not measured: the engine has none")
    return lines


def _served_lines(profile: Profile) -> list[str]:
    lines = []
    if (mock := profile.mock) is not None:
        lines.append(
            f"  mock engine: {1e6 * mock.sequence_s:.3g} us more between steps for each sequence beyond the first; a "
            f"request's front {1e3 * mock.fronts_s[0]:+.2g} to {1e3 * mock.fronts_s[-1]:+.2g} ms"
        )
    if (served := profile.served) is not None:
        lines.append(
            f"  served: {1e3 * served.prefill_extra_s:.3g} ms more a step of prompts, "
            f"{1e3 * served.decode_extra_s:.3g} ms one of decodes, {1e3 * served.mixed_extra_s:.3g} ms one of both; "
            "the first decode behind a prompt or a rest "
            f"{1e3 * served.warming.first_s:.3g} ms more, the next {served.warming.ratio:.2f} of that, and so on"
        )
        beside = served.slowdown
        lines.append(
            f"  beside another worker: prompts {beside.prompts_by_prompts:.0%} longer by prompts, "
            f"{beside.prompts_by_decodes:.0%} by decodes; decodes {beside.decodes_by_prompts:.0%} by prompts, "
            f"{beside.decodes_by_decodes:.0%} by decodes; cores for {beside.at_once:.3g} workers; behind a rest "
            f"prompts {1e3 * beside.rested_prompts_s:.3g} ms more"
        )
        lines.append(f"  four of five times a machine's steps take {_varied(served.jitter)} times the usual")
    return lines


def _varied(jitter: Jitter) -> str:
    tenth = len(jitter.prompts) // 10  # of equally likely factors in order
    kinds = (("prompts", jitter.prompts), ("decodes", jitter.decodes))
    return ", ".join(f"{what} {factors[tenth]:.2f} to {factors[-1 - tenth]:.2f}" for what, factors in kinds)
