"""The chart in a real cluster: install, test, upgrade, roll back, drain, uninstall, reinstall."""
