"""Which options of the method matter for a model and images: `run.ablate` is the job on one screen.

It runs in PyTorch: options change which tokens stay, not how an engine computes, so no engine is needed.
"""
