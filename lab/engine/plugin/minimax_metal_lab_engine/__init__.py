"""SGLang 0.5.23 on a machine without a GPU, through the engine's own plug-in interface.

A lab stand-in, never installed on a host that has GPUs. The engine finds the two functions below by their
entry points, in every process it starts:

* :func:`platform` names the device: SGLang's CPU device, registered as out of tree, so that layers take their
  plain torch path and no compiled kernel package is imported;
* :func:`install` replaces the few helpers that have no such path (``hooks.py`` lists them, each with its
  reason).

Everything else is the engine as installed: argument parsing, processes and ranks, scheduler, tokenizer, chat
template, parsers, HTTP server.

Nothing heavy is imported here: SGLang imports this module while it is still looking for plug-ins.
"""


def platform() -> str:
    """Return where SGLang finds the platform class (entry point ``sglang.srt.platforms``)."""
    return "minimax_metal_lab_engine.platform:LabPlatform"


def install() -> None:
    """Set the environment the ranks inherit and register the hooks (entry point ``sglang.srt.plugins``)."""
    from minimax_metal_lab_engine import hooks, ranks

    hooks.set_environment()
    ranks.start_server()
    hooks.register()
