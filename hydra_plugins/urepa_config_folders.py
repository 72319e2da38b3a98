"""The folders of --config-dir, wherever Hydra composes: in the launchers and in checks too, where it reads no command
line."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from urepa.config.conf_options import ADDED


class ConfigFolders(SearchPathPlugin):
    """Searched after conf/, as Hydra searches its --config-dir."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in ADDED:
            search_path.append("urepa", f"file://{folder}")
