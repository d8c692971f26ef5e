"""The benchmarks' table on Django REST framework, two gunicorn workers.

    python drf_peer.py HOST:PORT DATABASE

DATABASE is the path of an SQLite file, or a postgres:// URL.
"""

import os
import sys
import uuid
from urllib.parse import urlsplit

import django
from django.conf import settings

DATABASE = os.environ.get("BENCH_DATABASE", "bench.db")


def database():
    if not DATABASE.startswith("postgres"):
        pragmas = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
        options = {"timeout": 30, "transaction_mode": "IMMEDIATE", "init_command": pragmas}
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": DATABASE, "OPTIONS": options, "CONN_MAX_AGE": None}
    url = urlsplit(DATABASE)
    return {
        "ENGINE": "django.db.backends.postgresql", "NAME": url.path.strip("/"), "USER": url.username or "",
        "PASSWORD": url.password or "", "HOST": url.hostname, "PORT": url.port, "CONN_MAX_AGE": None,
    }


settings.configure(
    SECRET_KEY="only for benchmarks", ALLOWED_HOSTS=["*"], ROOT_URLCONF="drf_peer", DATABASES={"default": database()},
    USE_TZ=True, INSTALLED_APPS=["rest_framework"], MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [], "DEFAULT_PERMISSION_CLASSES": [], "UNAUTHENTICATED_USER": None,
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    },
)
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.http import JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402
from rest_framework import serializers, viewsets  # noqa: E402
from rest_framework.response import Response  # noqa: E402


class Server(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=128)
    description = models.CharField(max_length=1024, blank=True)
    status = models.CharField(max_length=32)
    owner = models.CharField(max_length=64)
    cpu = models.IntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "drf_peer"
        db_table = "servers"
        indexes = [models.Index(fields=["status", "created_at", "id"], name="servers_status")]


class ServerSerializer(serializers.ModelSerializer):
    class Meta:
        model = Server
        fields = ["id", "name", "description", "status", "owner", "cpu", "created_at"]


class ServerViewSet(viewsets.ModelViewSet):
    queryset = Server.objects.all()
    serializer_class = ServerSerializer

    def list(self, request):
        rows = self.get_queryset().filter(status=request.query_params["status"]).order_by("created_at", "id")
        rows = rows[:int(request.query_params.get("limit", 20))]
        return Response({"servers": self.get_serializer(rows, many=True).data})

    def retrieve(self, request, pk=None):
        return Response({"server": self.get_serializer(self.get_object()).data})

    def create(self, request):
        serializer = self.get_serializer(data=request.data["server"])
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response({"server": serializer.data}, status=201)

    def update(self, request, pk=None):
        serializer = self.get_serializer(self.get_object(), data=request.data["server"], partial=True)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response({"server": serializer.data})


urlpatterns = [
    path("readyz", lambda request: JsonResponse({"status": "ready"})),
    path("servers", ServerViewSet.as_view({"get": "list", "post": "create"})),
    path("servers/<pk>", ServerViewSet.as_view({"get": "retrieve", "put": "update"})),
]
application = get_wsgi_application()

if __name__ == "__main__":
    if os.environ.get("BENCH_DATABASE") != sys.argv[2]:
        # Once more with the environment that the workers will see.
        os.environ["BENCH_DATABASE"] = sys.argv[2]
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with connection.schema_editor() as editor:
        editor.create_model(Server)
    connection.close()
    folder = os.path.dirname(os.path.abspath(__file__))
    gunicorn = os.path.join(os.path.dirname(sys.executable), "gunicorn")
    # Threads only so that kept connections do not block a worker for good.
    args = [gunicorn, "-w", "2", "-k", "gthread", "--threads", "4", "-b", sys.argv[1], "--chdir", folder]
    os.execv(gunicorn, [*args, "--log-level", "warning", "drf_peer:application"])
