"""What was named on the command line: the model's directory, the Ray cluster."""

from __future__ import annotations

import socket

from deploy.checkpoint import check_checkpoint
from deploy.doctor.finding import Finding, fail, ok, warn
from deploy.doctor.machine import Wanted
from deploy.hub import model_directory
from deploy.machine import available_bytes
from deploy.ray_cluster.cluster import check_ray_installed
from deploy.ray_cluster.connection import PROBE_TIMEOUT_S
from deploy.ray_cluster.placement import LOCAL
from deploy.safetensors_headers import BadCheckpoint
from pdserve.byte_sizes import size_in_words
from pdserve.exit import StartError
from pdserve.settings import address_problems, split_address


def check_model(name: str, wanted: Wanted, on_cpu: bool) -> list[Finding]:
    """config.json, the safetensors' headers and the tokenizer; and whether all workers' copies fit into memory."""
    try:
        found = check_checkpoint(model_directory(name))
    except (BadCheckpoint, StartError) as error:
        return [fail("model", "directory", str(error), "`pdserve serve` would refuse it with the same words")]
    context = f"context {found.max_position:,}" if found.max_position else "no context limit"
    said = f"{found.architecture}, {found.num_parameters / 1e6:,.1f} M parameters, {found.stored_dtype}, {context}"
    findings = [ok("model", "directory", said)]
    total = found.weight_bytes * wanted.workers
    if on_cpu:
        said = f"{wanted.workers} copies take {size_in_words(total)}, {size_in_words(available_bytes())} are available"
        fits = total <= available_bytes()
        findings.append(ok("model", "weights", said) if fits else fail("model", "weights", said, "start fewer workers"))
    return findings


def check_ray(address: str) -> Finding:
    """Ray installed and, where an address was given, its port open."""
    try:
        check_ray_installed()
    except StartError as error:
        return fail("Ray", "package", error.message, "pip install 'pdserve[ray]'")
    if address == LOCAL:
        return ok("Ray", "package", "installed; a cluster of its own would be started")
    if address == "auto":
        return warn("Ray", "address", "auto: not tried", "give HOST:PORT to have it tried")
    problems = address_problems("--ray", address)
    if problems:
        return fail("Ray", "address", problems[0], "`pdserve serve` would refuse it too")
    try:
        socket.create_connection(split_address(address), PROBE_TIMEOUT_S).close()
    except OSError as error:
        return fail("Ray", "address", f"{address}: {error}", "is the head node running, its port open (ray status)?")
    return ok("Ray", "address", f"{address} answers")
