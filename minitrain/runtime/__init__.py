"""What a run needs beside its mathematics: devices, files, checkpoints, fast kernels."""
