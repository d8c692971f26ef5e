//! Wake-ups between the processes of a cluster, by PostgreSQL's `NOTIFY`: one
//! for many commits, on a connection of its own, since one in a transaction
//! would have all commits wait for each other. It only makes things quick: who
//! hears nothing looks every now and then anyway.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use super::worker::Worker;

/// The channel's name.
const CHANNEL: &str = "podyard_tasks";
/// The shortest time between two of a process.
const GAP: Duration = Duration::from_millis(3);
/// How long a connection may take to be made or to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens and tells until it is stopped; a lost connection is made anew.
pub(super) async fn run(worker: Arc<Worker>, url: String, mut stopped: watch::Receiver<bool>) {
    let Ok(mut config) = url.parse::<Config>() else {
        tracing::warn!(
            "no wake-ups between processes: the database's URL is only known to libpq; tasks are polled"
        );
        return;
    };
    config
        .application_name("podyard-tasks")
        .connect_timeout(PATIENCE)
        .keepalives_idle(Duration::from_secs(30));
    let mut told = false;
    loop {
        let connected = tokio::select! {
            _ = stopped.wait_for(|it| *it) => return,
            ended = serve(&worker, &config, &mut told) => ended,
        };
        if let Err(error) = connected
            && !told
        {
            told = true;
            tracing::warn!(%error, "no wake-ups between processes for now; tasks are polled");
        }
        tokio::select! {
            _ = stopped.wait_for(|it| *it) => return,
            () = sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// One connection's life.
async fn serve(
    worker: &Worker,
    config: &Config,
    told: &mut bool,
) -> std::result::Result<(), tokio_postgres::Error> {
    let (client, mut connection) = config.connect(NoTls).await?;
    let (heard, mut news) = tokio::sync::mpsc::unbounded_channel();
    let driver = async move {
        let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notification(it) = message? {
                let _ = heard.send(it.process_id());
            }
        }
        Ok(())
    };
    let talk = async {
        client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
        let me = client.query_one("SELECT pg_backend_pid()", &[]).await?.get::<_, i32>(0);
        if std::mem::take(told) {
            tracing::info!("wake-ups between processes are back");
        }
        // What was told before is not heard.
        worker.waker().look();
        loop {
            tokio::select! {
                from = news.recv() => match from {
                    Some(from) if from == me => {}
                    Some(_) => worker.waker().due(),
                    None => return Ok(()),
                },
                () = worker.waker().to_be_told() => tell(&client).await?,
            }
        }
    };
    tokio::select! {
        ended = driver => ended,
        ended = talk => ended,
    }
}

async fn tell(client: &Client) -> std::result::Result<(), tokio_postgres::Error> {
    match timeout(PATIENCE, client.batch_execute(&format!("NOTIFY {CHANNEL}"))).await {
        Ok(done) => done?,
        // The connection will be found dead, or late.
        Err(_) => tracing::debug!("a wake-up took too long"),
    }
    sleep(GAP).await;
    Ok(())
}

/// Starts it, where the database can tell.
pub(super) fn start(worker: &Arc<Worker>, url: Option<&str>, stopped: watch::Receiver<bool>) {
    if let Some(url) = url {
        tokio::spawn(run(worker.clone(), url.to_owned(), stopped));
    }
}
