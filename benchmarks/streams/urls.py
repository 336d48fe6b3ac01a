"""The site's one path."""

from django.urls import include, path

urlpatterns = [path("tasks/", include("aiotasks.urls"))]
