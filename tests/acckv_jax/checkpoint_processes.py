"""One of two processes that share a cache's folder: ``python -m tests.acckv_jax.checkpoint_processes FOLDER ...``.

Both print the tokens before saving and after loading onto another mesh, and what errors said, as JSON.
"""

import json
from pathlib import Path

import jax
import tyro

from models.devices import Devices, OnDevices, is_first


def main(folder: tyro.conf.Positional[Path], devices: OnDevices = Devices()) -> None:
    """Joins the other, saves, loads, decodes."""
    devices.join()
    from jax.experimental import multihost_utils  # and what makes arrays must wait for the other

    import acckv_jax as kv
    from tests.acckv_jax.test_checkpoint_mesh import decoded_on, on, pruned_on, scored_by

    def tokens_of(kind: str, state: kv.DecodeState) -> list:
        return multihost_utils.process_allgather(decoded_on(kind, name, state), tiled=True).tolist()

    def error_of(call) -> str:
        try:
            call()
        except ValueError as error:
            return str(error)
        return ""

    name, told = "quantized_h2o_every_4", {}
    scored_by(name)  # each for itself, before there is a mesh
    with on("2x4"):
        state = pruned_on("2x4", name)
        kv.save_cache(folder / "clip", state, model="llama")
        told["exists"] = error_of(lambda: kv.save_cache(folder / "clip", state))
        told["saved"] = tokens_of("2x4", state)
    told["without a mesh"] = error_of(lambda: kv.load_cache(folder / "clip"))
    with on("4x2"):
        told["loaded"] = tokens_of("4x2", kv.load_cache(folder / "clip", model="llama"))
        if is_first():
            (folder / "clip" / "arrays" / "_METADATA").write_text("")
        told["damaged"] = error_of(lambda: kv.load_cache(folder / "clip"))
    print(json.dumps(told), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    tyro.cli(main)
