"""URLs for a site to include: ``path("tasks/", include("aiotasks.urls"))``."""

from django.urls import path

from .views import events

app_name = "aiotasks"
urlpatterns = [path("events/", events, name="events")]
