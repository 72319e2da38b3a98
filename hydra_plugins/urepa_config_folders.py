"""Adds the folders of --config-dir to the search path wherever Hydra composes, also in launchers and checks, where
Hydra does not read the command line."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from urepa.config.conf_options import ADDED


class ConfigFolders(SearchPathPlugin):
    """Appends the folders, so that they are searched after conf/, as Hydra does with --config-dir."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in ADDED:
            search_path.append("urepa", f"file://{folder}")
