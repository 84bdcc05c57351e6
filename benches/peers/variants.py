"""The image in every format that can be read lazily, in the registry beside the original."""

import json
import subprocess

from bench import DEADLINE_S, REPOSITORY, tell

# What to call them, and their tags. Each was written by the format's own tool, SOCI's second version by ours: Debian's `soci` knows
# the first one only.
FORMATS = {"eStargz": "estargz", "zstd:chunked": "zstd-chunked", "SOCI v2": "soci"}

# Needs a containerd, which is there for as long as the script runs.
ESTARGZ = """
place=$(mktemp -d)
trap 'kill %1; wait; rm -rf $place' EXIT
containerd --root $place/root --state $place/state --address $place/socket --log-level error 2>/dev/null &
for _ in $(seq 200); do [ -S $place/socket ] && break; sleep 0.1; done
ctr() { ctr-remote --address $place/socket "$@" >&2; }
ctr content fetch --plain-http $FROM
ctr images convert --estargz --oci $FROM $TO
ctr images push --plain-http $TO
"""

ZSTD_CHUNKED = """
skopeo --insecure-policy copy --src-tls-verify=false --dest-tls-verify=false \\
    --dest-compress-format zstd:chunked --dest-force-compress-format docker://$FROM docker://$TO >&2
"""


def push_variants(wanted, options, programs, registry, tag):
    """Converts what the registry has not got yet. Gives the names of those that are there then."""
    return [name for name in wanted if has(registry, FORMATS[name]) or converted(name, options, programs, registry, tag)]


def push_shortened(registry, tag, packed_bytes):
    """The image of the bottom layers of the one with this tag, as many as have so many bytes together; gives its tag."""
    manifest = registry.manifest(REPOSITORY, tag)
    layers, held = [], 0
    for layer in manifest["layers"]:
        if held >= packed_bytes:
            break
        layers.append(layer)
        held += layer["size"]
    config = json.loads(registry.request("GET", f"/v2/{REPOSITORY}/blobs/{manifest['config']['digest']}").body)
    config["rootfs"]["diff_ids"] = config["rootfs"]["diff_ids"][:len(layers)]
    config.pop("history", None)
    manifest["config"] |= registry.push_small(REPOSITORY, json.dumps(config).encode())
    manifest["layers"] = layers
    tell(f"{tag}: {len(layers)} layers, {held / 1e6:.0f} MB")
    shortened = f"{tag}-{len(layers)}"
    kind = {"Content-Type": manifest["mediaType"]}
    answer = registry.request("PUT", f"/v2/{REPOSITORY}/manifests/{shortened}", json.dumps(manifest), kind)
    if answer.status != 201:
        raise SystemExit(f"the registry answered {answer.status} to the manifest of {shortened}")
    return shortened


def has(registry, tag):
    kinds = {"Accept": "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"}
    return registry.request("HEAD", f"/v2/{REPOSITORY}/manifests/{tag}", headers=kinds).status == 200


def converted(name, options, programs, registry, tag):
    to = FORMATS[name]
    if to == "soci":
        tell(f"converting to {name}")
        store = options.work / "index-store"
        reference = f"docker://{registry.address}/{REPOSITORY}:{tag}"
        index = [programs["sifon"], "index", "--store", store, "--push", "--tag", to, reference]
        subprocess.run(index, check=True, timeout=DEADLINE_S)
        return True
    if not options.oracle:
        tell(f"{name} is skipped: no --oracle to convert with")
        return False
    tell(f"converting to {name}")
    script = {"estargz": ESTARGZ, "zstd-chunked": ZSTD_CHUNKED}[to]
    names = [f"{key}={registry.address}/{REPOSITORY}:{value}" for key, value in [("FROM", tag), ("TO", to)]]
    command = [options.enter, options.oracle, "env", *names, "bash", "-ec", script]
    subprocess.run(command, check=True, timeout=DEADLINE_S, cwd=options.work)
    return True
