"""Segment images in the browser.

    python app.py                              with the packaged network
    python app.py checkpoint=RUN               with the run's best weights
    python app.py checkpoint=[RUN1,RUN2]       two networks side by side

Drop, paste or choose an image to segment it, and click a point in the overlay to see what that point attends to after
R = 1, 2 and 3 passes (paper, Fig. 7). By default, only this machine can reach the page (see ``host``); neither the page
nor the server needs internet access. Requires Gradio: ``pip install 'ccnet-segmentation[app]'``.
"""

import importlib.util

from omegaconf import DictConfig

from ccnet.engine import app, checkpoints, guards, prediction, runtime
from ccnet.engine.commands.entry_point import entry_point


@entry_point("app")
def main(config: DictConfig) -> None:
    """Load the networks and serve the page until Ctrl-C or SIGTERM."""
    if importlib.util.find_spec("gradio") is None:
        raise OSError("ccnet-app needs Gradio, which is not installed: pip install 'ccnet-segmentation[app]'")
    names = [str(name) for name in guards.as_list(config.checkpoint or checkpoints.DEFAULT)]
    loaded = {name: checkpoints.load(checkpoints.find(name), **config.published) for name in names}
    checkpoints.check_published([*loaded.values()])
    networks = {name: prediction.TrainedNetwork(saved, device=config.device) for name, saved in loaded.items()}
    viewer = app.Viewer(networks, max_megapixels=config.max_megapixels)
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"warning: host={config.host}: everyone who can reach this machine can use the page")
    with (
        runtime.stopped_like_ctrl_c(),  # uploads are removed then, too
        app.serving(viewer, host=config.host, port=config.port, max_upload_mb=config.max_upload_mb) as page,
    ):
        print(f"{' and '.join(names)}: open {page.local_url} in a browser; Ctrl-C stops the server", flush=True)
        page.block_thread()


if __name__ == "__main__":
    import ccnet.app  # so that launchers pickle `main` by reference: see entry_point

    ccnet.app.main()
