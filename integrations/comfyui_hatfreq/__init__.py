"""HATFreq in ComfyUI: copy this folder into `ComfyUI/custom_nodes`, the weights into `ComfyUI/models/upscale_models`.

ComfyUI imports every folder of `custom_nodes` when it starts. This one has no nodes of its own: it registers HATFreq
with spandrel, and ComfyUI's "Load Upscale Model" and "Upscale Image (using Model)" then take our files.
"""

import spandrel_hatfreq  # noqa: F401 - registers itself

NODE_CLASS_MAPPINGS: dict[str, type] = {}
