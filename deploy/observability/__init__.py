"""What Prometheus, Alertmanager and Grafana need to watch a cluster: all of it generated."""
