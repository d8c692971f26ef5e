//! Tasks that do nothing: what the engine itself takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use chrono::DateTime;
use serde_json::Value;

use crate::{
    Result,
    http::{Connection, dechunk, write_request},
    postgres::Cluster,
    process,
    report::{Bar, Limit, Report, Table},
    rest::{Contender, Database, Target, database_for, seed, start},
};

/// Tasks that are timed one after the other.
const SAMPLES: usize = 300;

/// Tasks that are asked for all at once, each for an object of its own.
const CROWD: usize = 5000;

/// Connections that ask for them.
const CONNECTIONS: usize = 64;

/// How long a task may take before it is looked at: nothing disturbs it meanwhile.
const PATIENCE: Duration = Duration::from_millis(12);

/// What came of one server.
struct Figures {
    /// Milliseconds from the answer to the end of the first stage, sorted.
    times: Vec<f64>,
    /// Answers per second while tasks were asked for.
    asked: f64,
    /// Tasks per second, from the first request to the last end.
    done: f64,
    /// CPU microseconds per task, from its request to its end: the server, and the database.
    server: f64,
    database: f64,
}

/// Measures all servers on one database. They answer `POST /servers/<id>/nothing` with a task.
pub async fn measure(database: Database, contenders: &[Contender], report: &mut Report) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("podyard-bench-").tempdir()?;
    let cluster = match database {
        Database::Sqlite => None,
        Database::Postgres => Some(Cluster::open()?),
    };
    report.heading(2, &format!("Tasks on {database}"));
    report.paragraph(format!(
        "A task of one stage that does nothing. First {SAMPLES}, one after the other: the time from the \
         answer, by the client's clock, to the end of the first stage, by the database's (SQLite's counts \
         in milliseconds, so the client's is cut to them too). Then {CROWD} at once over {CONNECTIONS} \
         connections, each on an object of its own: the rate is from the first request to the last end, \
         and so is the CPU, which includes the request that starts the task."
    ));
    let mut table = Table::new(&[
        "server",
        "mean ms",
        "p50 ms",
        "p99 ms",
        "asked for /s",
        "done /s",
        "CPU µs/task",
        "server + database",
    ]);
    for (number, contender) in contenders.iter().enumerate() {
        eprintln!("{database}: tasks of {}", contender.name);
        let url = database_for(&contender.name, cluster.as_ref(), &folder)?;
        let mut target = start(contender, &url, folder.path()).await?;
        target.ids = seed(&target).await?.into();
        let figures = figures(&target, database, cluster.as_ref()).await?;
        let median = figures.times[figures.times.len() / 2];
        table.row([
            contender.name.clone(),
            format!("{:.1}", figures.times.iter().sum::<f64>() / figures.times.len() as f64),
            format!("{median:.1}"),
            format!("{:.1}", figures.times[figures.times.len() * 99 / 100]),
            format!("{:.0}", figures.asked),
            format!("{:.0}", figures.done),
            format!("{:.0}", figures.server + figures.database),
            format!("{:.0} + {:.0}", figures.server, figures.database),
        ]);
        if number == 0 && database == Database::Sqlite {
            let name = format!("{database}: answer to the end of a task's first stage, median");
            report.bar(Bar { name, value: median, limit: Limit::AtMost(10.0), unit: " ms" });
        }
    }
    report.table(&table);
    Ok(())
}

async fn figures(target: &Target, database: Database, cluster: Option<&Cluster>) -> Result<Figures> {
    let (first, rest) = target.ids.split_at(SAMPLES);
    let times = one_by_one(target, first, database).await?;

    let read = || {
        let database = cluster.and_then(Cluster::cpu).unwrap_or_default();
        (process::cpu(target.server.id()), database)
    };
    let objects: Arc<[String]> = rest[..CROWD].into();
    let before = read();
    let begun = now();
    ask(target, &objects).await?;
    let asked = now();
    let mut connection = Connection::open(target.server.address).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let active = "/tasks?status=queued&status=running&status=waiting&limit=1&field=id";
        let list = get(&mut connection, target, active).await?;
        if list["tasks"].as_array().ok_or("a list without tasks")?.is_empty() {
            break;
        }
        if now() - begun > 120e6 {
            return Err("the tasks did not end within two minutes".into());
        }
    }
    let after = read();
    let last = get(&mut connection, target, "/tasks?order_by=ended_at&order=desc&limit=1").await?;
    let ended = micros(&last["tasks"][0]["ended_at"])?;
    let done = get(&mut connection, target, "/tasks?status=done&details=total&limit=1&field=id").await?;
    if done["total"] != SAMPLES + CROWD {
        return Err(format!("{} of {} tasks are done", done["total"], SAMPLES + CROWD).into());
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / CROWD as f64;
    Ok(Figures {
        times,
        asked: CROWD as f64 / (asked - begun) * 1e6,
        done: CROWD as f64 / (ended - begun) * 1e6,
        server: each(after.0.saturating_sub(before.0)),
        database: each(after.1.saturating_sub(before.1)),
    })
}

/// Starts a task, waits for its end, and so on.
async fn one_by_one(target: &Target, ids: &[String], database: Database) -> Result<Vec<f64>> {
    let cut = |time: f64| if database == Database::Sqlite { (time / 1e3).floor() * 1e3 } else { time };
    let mut connection = Connection::open(target.server.address).await?;
    let mut times = Vec::with_capacity(ids.len());
    for id in ids {
        let path = format!("/servers/{id}/nothing");
        let answer = send(&mut connection, "POST", &path, &target.headers).await?;
        let answered = cut(now());
        let answer: Value = serde_json::from_slice(&answer)?;
        let task = answer["task_id"].as_str().ok_or("an answer without a task")?;
        let path = format!("/tasks/{task}");
        let task = loop {
            tokio::time::sleep(PATIENCE).await;
            let mut answer = get(&mut connection, target, &path).await?;
            if answer["task"]["ended_at"].is_string() {
                break answer["task"].take();
            }
        };
        if task["status"] != "done" {
            return Err(format!("a task did not end well: {task}").into());
        }
        times.push((micros(&task["history"][0]["ended_at"])? - answered) / 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Asks for a task on each object, over many connections.
async fn ask(target: &Target, objects: &Arc<[String]>) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (objects, next) = (Arc::clone(objects), Arc::clone(&next));
        let (address, headers) = (target.server.address, target.headers.clone());
        running.spawn(async move {
            let mut connection = Connection::open(address).await?;
            while let Some(id) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                send(&mut connection, "POST", &format!("/servers/{id}/nothing"), &headers).await?;
            }
            Result::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

async fn send(connection: &mut Connection, method: &str, path: &str, headers: &str) -> Result<Vec<u8>> {
    let mut request = Vec::with_capacity(512);
    write_request(&mut request, method, path, headers, (method == "POST").then_some("{}"));
    let answer = connection.send(&request).await?;
    let body = dechunk(answer.body);
    if !answer.is_success() {
        let body = String::from_utf8_lossy(&body);
        return Err(format!("{method} {path} answered {}: {body}", answer.status).into());
    }
    Ok(body)
}

async fn get(connection: &mut Connection, target: &Target, path: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&send(connection, "GET", path, &target.headers).await?)?)
}

/// The time by this machine's clock, in microseconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e6
}

/// A time of an answer, in the same.
fn micros(time: &Value) -> Result<f64> {
    let text = time.as_str().ok_or_else(|| format!("{time} is no time"))?;
    Ok(DateTime::parse_from_rfc3339(text)?.timestamp_micros() as f64)
}
