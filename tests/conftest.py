"""No test asks the network or touches the user's caches: said here, before anything imports huggingface_hub."""

import atexit
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="tinyldm-tests-")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
