"""The benchmarks' table on FastAPI and SQLAlchemy (async), two uvicorn workers.

    python fastapi_peer.py HOST:PORT DATABASE

DATABASE is the path of an SQLite file, or a postgres:// URL.
"""

import os
import sys
import uuid
from contextlib import asynccontextmanager
from datetime import datetime, timezone

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import Index, event, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DATABASE = os.environ.get("BENCH_DATABASE", "bench.db")
POSTGRES = DATABASE.startswith("postgres")
URL = "postgresql+asyncpg" + DATABASE[DATABASE.index("://"):] if POSTGRES else "sqlite+aiosqlite:///" + DATABASE
engine = create_async_engine(URL)
Session = async_sessionmaker(engine, expire_on_commit=False)

if not POSTGRES:
    @event.listens_for(engine.sync_engine, "connect")
    def durable(connection, _):
        for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = FULL"):
            connection.execute("PRAGMA " + pragma)


class Base(DeclarativeBase):
    pass


class Server(Base):
    __tablename__ = "servers"
    __table_args__ = (Index("servers_status", "status", "created_at", "id"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str]
    status: Mapped[str]
    owner: Mapped[str]
    cpu: Mapped[int]
    created_at: Mapped[str]


class ServerCreate(BaseModel):
    name: str
    description: str = ""
    status: str
    owner: str
    cpu: int


class ServerUpdate(BaseModel):
    name: str | None = None
    description: str | None = None
    status: str | None = None
    cpu: int | None = None


class ServerOut(ServerCreate):
    id: str
    created_at: datetime
    model_config = {"from_attributes": True}


class One(BaseModel):
    server: ServerOut


class Many(BaseModel):
    servers: list[ServerOut]


class CreateBody(BaseModel):
    server: ServerCreate


class UpdateBody(BaseModel):
    server: ServerUpdate


@asynccontextmanager
async def lifespan(_):
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/readyz")
async def readyz():
    return {"status": "ready"}


@app.get("/servers")
async def list_servers(status: str, limit: int = 20, order_by: str = "created_at", order: str = "asc") -> Many:
    query = select(Server).where(Server.status == status).order_by(Server.created_at, Server.id).limit(limit)
    async with Session() as session:
        return Many(servers=list((await session.scalars(query)).all()))


@app.get("/servers/{key}")
async def get_server(key: str) -> One:
    async with Session() as session:
        row = await session.get(Server, key)
    if row is None:
        raise HTTPException(404)
    return One(server=row)


@app.post("/servers", status_code=201)
async def create_server(body: CreateBody) -> One:
    now = datetime.now(timezone.utc).isoformat()
    row = Server(id=str(uuid.uuid4()), created_at=now, **body.server.model_dump())
    async with Session() as session, session.begin():
        session.add(row)
    return One(server=row)


@app.put("/servers/{key}")
async def update_server(key: str, body: UpdateBody) -> One:
    async with Session() as session, session.begin():
        row = await session.get(Server, key)
        if row is None:
            raise HTTPException(404)
        for name, value in body.server.model_dump(exclude_unset=True).items():
            setattr(row, name, value)
    return One(server=row)


async def make():
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    import asyncio

    os.environ["BENCH_DATABASE"] = sys.argv[2]
    if os.environ.get("BENCH_READY") != "1":
        # Once more with the environment that the workers will see.
        os.environ["BENCH_READY"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    asyncio.run(make())
    host, port = sys.argv[1].rsplit(":", 1)
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    os.environ["PYTHONPATH"] = sys.path[0]
    uvicorn.run("fastapi_peer:app", host=host, port=int(port), workers=2, log_level="warning", access_log=False)
