"""The engine: the one process that owns the accelerator and the loaded model. The only package that imports torch."""
