"""A pytest plugin for llama.cpp's server tests: the model is a local file, so nothing is downloaded before them."""


def pytest_configure():
    from utils import ServerPreset

    ServerPreset.load_all = staticmethod(lambda: None)
