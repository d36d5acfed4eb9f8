"""Serve the page from this machine, without telemetry and without loading anything from the internet."""

import logging
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .examples import write_examples
from .viewer import Viewer


@contextmanager
def serving(viewer: Viewer, *, host: str, port: int | None, max_upload_mb: float) -> Generator[Any]:
    """Serve the page until the ``with`` block ends; yield its Gradio object, whose ``local_url`` is the address.

    Uploads are stored in a temporary folder and removed after an hour, or earlier if the server stops.

    Args:
        viewer: the networks.
        host: the address to listen on; "127.0.0.1" for this machine only.
        port: the port; None for the first free one from 7860.
        max_upload_mb: the maximum size of an upload in 10^6 bytes.

    Raises:
        OSError: the port is in use, or this machine has no such address.
    """
    with tempfile.TemporaryDirectory(prefix="ccnet-app-") as name:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read on import
        os.environ["GRADIO_TEMP_DIR"] = name  # read when a component is built
        from gradio.themes import Default

        logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio checks its own address, and httpx logs that
        from .layout import CSS, build_page

        examples = write_examples(viewer.networks[0].dataset, Path(name) / "examples")
        page = build_page(viewer, examples, Path(name) / "downloads")
        page.queue(max_size=32)
        try:
            try:
                page.launch(
                    server_name=host,
                    server_port=port,
                    share=False,
                    quiet=True,
                    show_error=True,
                    max_file_size=int(1e6 * max_upload_mb),
                    footer_links=[],
                    run_history=False,
                    enable_monitoring=False,
                    ssr_mode=False,
                    mcp_server=False,
                    pwa=False,
                    # By default, the theme would load its fonts from Google.
                    theme=Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
                    css=CSS,
                    prevent_thread_lock=True,
                )
            except OSError as error:  # Gradio's advice, another variable or argument, would have no effect here
                raise OSError(
                    f"host={host} port={port} cannot be used: the port is taken, or the host is not an address of this "
                    "machine. Set another port; port=null is the first free one from 7860"
                ) from error
            yield page
        finally:
            page.close(verbose=False)
