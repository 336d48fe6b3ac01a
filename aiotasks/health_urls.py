"""URLs of health and metrics for a site to include: ``path("", include("aiotasks.health_urls"))``.

Without a slash at the end, as probes ask for them elsewhere.
"""

from django.urls import path

from .views import livez, metrics, readyz

app_name = "aiotasks_health"
urlpatterns = [
    path("livez", livez, name="livez"),
    path("readyz", readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
]
