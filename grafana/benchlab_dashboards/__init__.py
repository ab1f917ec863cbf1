"""Grafana dashboards as code: one module a dashboard; `python -m benchlab_dashboards` writes their JSON."""
