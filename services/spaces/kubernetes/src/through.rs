//! The way to a pod through the API server's proxy, for a Podyard outside of
//! the cluster.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use kube::Config;
use kube::client::{Body, ConfigExt as _};
use podyard_driver::{Error, Pending, Result, Stream, Through};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tower::util::BoxService;
use tower::{BoxError, Service as _, ServiceBuilder, ServiceExt as _};

/// How long connecting may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the login is read anew. Files and plugins are only read when what
/// they gave is about to expire.
const RENEWED: Duration = Duration::from_secs(30);

/// The API server, as what stands before all pods.
pub(crate) struct ApiServer {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// What stands before the path of a pod.
    base: String,
    /// Puts the login into a request as the cluster's own client does.
    login: Mutex<BoxService<Request<Body>, Response<HeaderMap>, BoxError>>,
    headers: RwLock<Vec<(String, String)>>,
}

impl ApiServer {
    pub(crate) async fn new(config: &Config, namespace: &str) -> Result<Arc<Self>> {
        let wrong = |why: String| Error::Unavailable(format!("the cluster's proxy cannot be used: {why}"));
        if config.proxy_url.is_some() {
            return Err(wrong("the login names a proxy of its own before the cluster".to_owned()));
        }
        let url = &config.cluster_url;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = url.scheme_str() != Some("http");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            let client = config.rustls_client_config().map_err(|e| wrong(e.to_string()))?;
            let name = config.tls_server_name.clone().unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).map_err(|e| wrong(e.to_string()))?;
            Some((TlsConnector::from(Arc::new(client)), name))
        } else {
            None
        };
        let login = ServiceBuilder::new()
            .option_layer(config.auth_layer().map_err(|e| wrong(e.to_string()))?)
            .layer(config.extra_headers_layer().map_err(|e| wrong(e.to_string()))?)
            .map_err(BoxError::from)
            .service_fn(|request: Request<Body>| async move {
                Ok::<_, BoxError>(Response::new(request.headers().clone()))
            })
            .boxed();
        let server = Arc::new(Self {
            base: format!("{}/api/v1/namespaces/{namespace}/pods/", url.path().trim_end_matches('/')),
            host,
            port,
            tls,
            login: Mutex::new(login),
            headers: RwLock::default(),
        });
        server.read_login().await.map_err(|e| wrong(e.to_string()))?;
        Ok(server)
    }

    async fn read_login(&self) -> std::result::Result<(), BoxError> {
        let headers = {
            let mut login = self.login.lock().await;
            login.ready().await?.call(Request::new(Body::empty())).await?
        };
        let mut all = vec![("host".to_owned(), self.authority())];
        for (name, value) in headers.body() {
            all.push((name.as_str().to_owned(), value.to_str()?.to_owned()));
        }
        *self.headers.write().unwrap_or_else(PoisonError::into_inner) = all;
        Ok(())
    }

    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let usual = if self.tls.is_some() { 443 } else { 80 };
        if self.port == usual { host } else { format!("{host}:{}", self.port) }
    }

    /// Keeps the login fresh until it is dropped.
    pub(crate) async fn keep_login(&self) {
        loop {
            tokio::time::sleep(RENEWED).await;
            if let Err(error) = self.read_login().await {
                tracing::warn!(error, "the cluster's login cannot be renewed");
            }
        }
    }

    /// The way to one pod.
    pub(crate) fn to_pod(self: &Arc<Self>, name: &str, port: u16) -> Arc<dyn Through> {
        Arc::new(ToPod { server: self.clone(), prefix: format!("{}{name}:{port}/proxy", self.base) })
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            // It makes the connection better, not right.
            let _ = stream.set_nodelay(true);
            Ok(match &self.tls {
                Some((connector, name)) => {
                    Box::new(connector.connect(name.clone(), stream).await?) as Box<dyn Stream>
                }
                None => Box::new(stream),
            })
        };
        tokio::time::timeout(LIMIT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

struct ToPod {
    server: Arc<ApiServer>,
    prefix: String,
}

impl Through for ToPod {
    fn connect(&self) -> Pending<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(self.server.connect())
    }

    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn headers(&self) -> Vec<(String, String)> {
        self.server.headers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn config(url: &str) -> Config {
        Config::new(url.parse().unwrap())
    }

    #[tokio::test]
    async fn a_connection_and_where_it_leads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = ApiServer::new(&config(&format!("http://{addr}/k8s/one/")), "ns").await.unwrap();
        let way = server.to_pod("ws-a-b", 8080);
        assert_eq!(way.prefix(), "/k8s/one/api/v1/namespaces/ns/pods/ws-a-b:8080/proxy");
        assert_eq!(way.headers(), [("host".to_owned(), addr.to_string())]);
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(&buffer).await.unwrap();
        });
        let mut stream = way.connect().await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");
        echo.await.unwrap();
    }

    #[tokio::test]
    async fn the_login_goes_along() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "secret-1").unwrap();
        let mut config = config("http://127.0.0.1:1");
        config.auth_info.token_file = Some(file.path().display().to_string());
        config.auth_info.impersonate = Some("ann".into());
        let server = ApiServer::new(&config, "ns").await.unwrap();
        let headers = server.to_pod("p", 1).headers();
        let value = |name: &str| headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str());
        assert_eq!(value("authorization"), Some("Bearer secret-1"));
        assert_eq!(value("impersonate-user"), Some("ann"));
    }
}
