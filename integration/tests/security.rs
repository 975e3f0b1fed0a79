//! Who calls: a running server with tokens, TLS and client certificates, and everybody whom it must not let do what they ask.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use futures::{StreamExt, TryStreamExt, stream};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use springhouse_featurestore::push::{PushHeader, PushLog};
use springhouse_featurestore::tier::DiskTier;
use springhouse_featurestore::training_set::{CommandSpine, TrainingSetCommand, TrainingSets};
use springhouse_featurestore::{Error, ErrorKind, Result};
use springhouse_materializer::push::Pushes;
use springhouse_materializer::wire_queries::{PLACES, WireQueries};
use springhouse_serving::app::{App, StorePart, WorkerPart, bind, direct};
use springhouse_serving::flight::{Command as FlightCommand, FlightServer, RemoteFeatures};
use springhouse_serving::generated::inference::ModelInferRequest;
use springhouse_serving::generated::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use springhouse_serving::generated::inference::model_infer_request::InferInputTensor;
use springhouse_serving::predict::{PredictClient, TextColumn};
use springhouse_serving::security::{Access, CallersFile, Scope, Security, SecurityFiles, TlsFiles};
use springhouse_serving::worker::{Contracts, WorkerOptions};
use springhouse_serving::{FeatureServer, FeatureSource};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;

use crate::flights::binary;
use crate::project::{DEFINITIONS, TestProject, at};
use crate::push::opened;
use crate::wire::{deployed, run_client};

/// A running store and worker in this process.
struct Running {
    address: String,
    http: String,
    stop: watch::Sender<bool>,
    ended: JoinHandle<Result<()>>,
}

impl Running {
    async fn start(project: &TestProject, security: Security, socket: Option<PathBuf>) -> Self {
        // One that ended a moment ago may still hold them.
        let disk = opened(&project.folder.path().join("disk"), DiskTier::open).await;
        let features = Arc::new(FeatureServer::new(Arc::clone(&project.store), disk, 1 << 20, project.clock.clone()));
        features.follow(&()).await.expect("readable");
        let options = WorkerOptions { batch_rows: 100, queue_rows: 1000, ..WorkerOptions::default() };
        let contracts = Arc::new(Contracts::new(direct(&features), options).expect("a session"));
        contracts.follow().await.expect("the package loads");
        let log = opened(&project.folder.path().join("log"), PushLog::open).await;
        let (tier, changing) = features.tier();
        let followed = Box::new(features.followed());
        let pushes = Arc::new(Pushes::start(project.jobs(), log, tier, changing, followed).await.expect("starts"));
        features.push_to(Arc::clone(&pushes) as _);
        let queries = Arc::new(WireQueries::start(project.jobs()).expect("threads"));
        let flight = FlightServer::new(Arc::clone(&features), queries, Some(Arc::clone(&project.clock)));
        let local = "127.0.0.1:0".parse().expect("an address");
        let (listener, http) = (bind(local).await.expect("free"), bind(local).await.expect("free"));
        let address = listener.local_addr().expect("bound").to_string();
        let http_address = http.local_addr().expect("bound").to_string();
        let app = App {
            listeners: vec![listener],
            store: Some(StorePart { features, flight: flight.with_sink(pushes), socket }),
            worker: Some(WorkerPart { contracts, clock: project.clock.clone() }),
            http: Some(http),
            security,
        };
        let (stop, stopping) = watch::channel(false);
        Self { address, http: http_address, stop, ended: tokio::spawn(app.run(stopping)) }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.ended.await.expect("no panic").expect("drained");
    }
}

/// Deletes the push log of a server that has ended: it is let go of a moment after that.
async fn without_log(folder: &Path) {
    let log = folder.join("log");
    for _ in 0..250 {
        if std::fs::remove_dir_all(&log).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_dir_all(&log).expect("nobody writes there any more");
}

/// Makes a token, and gives its file.
fn token(folder: &Path, caller: &str, scopes: &[Scope]) -> PathBuf {
    let make = |file: &mut CallersFile| file.create(caller, scopes, at(0));
    let token = CallersFile::change(&folder.join("callers.toml"), make).expect("written");
    let file = folder.join(format!("{caller}.token"));
    std::fs::write(&file, format!("{}\n", token.reveal())).expect("writable");
    file
}

fn with_tokens(folder: &Path) -> Security {
    Security::read(SecurityFiles { callers: Some(folder.join("callers.toml")), tls: None }).expect("right")
}

fn ann() -> RecordBatch {
    let users: ArrayRef = Arc::new(StringArray::from(vec!["ann"]));
    RecordBatch::try_from_iter([("user_name", users)]).expect("one column")
}

/// A status line.
async fn get_metrics(http: &str, token: Option<&Path>) -> Result<()> {
    let shown = token.map_or_else(String::new, |file| {
        format!("Authorization: Bearer {}\r\n", std::fs::read_to_string(file).expect("there").trim())
    });
    let mut stream = tokio::net::TcpStream::connect(http).await.expect("listens");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n{shown}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        Some("401") => Err(Error::unauthenticated(answer)),
        Some("403") => Err(Error::forbidden(answer)),
        _ => Err(Error::internal(answer)),
    }
}

async fn push(store: &RemoteFeatures) -> Result<()> {
    let schema = crate::push::batch(&[]).schema();
    let mut pusher = store.pusher("paid", Arc::clone(&schema)).await?;
    pusher.send(&RecordBatch::new_empty(schema), &PushHeader::default()).await?;
    pusher.ack().await.map(|_| ())
}

/// Changes a producer that nobody knows, which those who may are told.
async fn change_producer(store: &RemoteFeatures) -> Result<()> {
    match store.act("change_producer", r#"{"source": "paid", "change": ["nobody", "retire"]}"#).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        answered => answered.map(|_| ()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_needs_its_scope_and_says_which() {
    let (project, package) = deployed().await;
    let folder = project.folder.path().to_owned();
    let names = Scope::ALL.map(|scope| (scope, token(&folder, scope.as_str(), &[scope])));
    let all = token(&folder, "all", &Scope::ALL);
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let address = format!("http://{}", server.address);
    let access = |file: &PathBuf| Access { token_file: Some(file.clone()), ..Access::default() };
    let metadata = PredictClient::with_access(&address, access(&all)).expect("an address");
    let metadata = metadata.metadata("fraud").await.expect("allowed");
    let text = |value: &str| vec![Some(value.to_owned())];
    let columns: Vec<TextColumn> = vec![("user_name".to_owned(), text("ann")), ("country".to_owned(), text("NL"))];
    let contract = project.state().await.current_contract("fraud").expect("defined").pinned();
    let now = at(60).to_string();

    let callers = names.iter().map(|(scope, file)| (Some(*scope), Some(file))).chain([(None, None)]);
    for (has, file) in callers {
        let access = file.map(access).unwrap_or_default();
        let store = RemoteFeatures::with_access(&address, access.clone()).expect("an address");
        let worker = PredictClient::with_access(&address, access).expect("an address");
        let shown = file.map(PathBuf::as_path);
        let asked: [(&str, Result<()>, &[Scope]); 13] = [
            ("lookup", store.lookup(&contract, ann()).await.map(|_| ()), &[Scope::Read]),
            ("package", store.package(package.digest()).await.map(|_| ()), &[Scope::Read]),
            ("contracts", store.deployments().await.map(|_| ()), &[Scope::Read]),
            ("status", store.act("status", "").await.map(|_| ()), &[Scope::Read, Scope::Operate]),
            ("clock", store.act("clock", &now).await.map(|_| ()), &[Scope::Operate]),
            ("follow", store.act("follow", "").await.map(|_| ()), &[Scope::Operate]),
            ("flush", store.act("flush", "").await.map(|_| ()), &[Scope::Operate]),
            ("push", push(&store).await, &[Scope::Push]),
            (
                "producers",
                store.act("producers", r#"{"source": "paid"}"#).await.map(|_| ()),
                &[Scope::Read, Scope::Push, Scope::Operate],
            ),
            ("change_producer", change_producer(&store).await, &[Scope::Operate]),
            ("infer", worker.infer(&metadata, &columns).await.map(|_| ()), &[Scope::Predict]),
            ("metadata", worker.metadata("fraud").await.map(|_| ()), &[Scope::Predict, Scope::Read, Scope::Operate]),
            ("metrics", get_metrics(&server.http, shown).await, &[Scope::Operate, Scope::Read]),
        ];
        for (what, answer, needed) in asked {
            let allowed = has.is_some_and(|scope| needed.contains(&scope));
            match answer {
                Ok(()) => assert!(allowed, "{what} with {has:?}"),
                Err(error) => {
                    assert!(!allowed, "{what} with {has:?}: {error:?}");
                    let kind = if has.is_some() { ErrorKind::Forbidden } else { ErrorKind::Unauthenticated };
                    assert_eq!(error.kind(), kind, "{what} with {has:?}: {error:?}");
                    // Of a Flight command it is known only when the message has been read, which nobody does for strangers.
                    if has.is_some() {
                        assert!(error.chain().contains(needed[0].as_str()), "{what} with {has:?}: {error:?}");
                    }
                }
            }
        }
    }
    health_needs_nothing_and_reflection_a_caller(&address).await;
    server.stop().await;
}

async fn health_needs_nothing_and_reflection_a_caller(address: &str) {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned()).expect("an address").connect_lazy();
    let asked = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel.clone()).check(asked).await.expect("anybody may ask");
    let nothing = stream::empty::<ServerReflectionRequest>();
    let refused = ServerReflectionClient::new(channel).server_reflection_info(nothing).await;
    assert_eq!(refused.map(|_| ()).expect_err("nobody known").code(), tonic::Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_what_it_opened() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let file = token(&folder, "worker", &[Scope::Read]);
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let access = Access { token_file: Some(file.clone()), ..Access::default() };
    let store = RemoteFeatures::with_access(&format!("http://{}", server.address), access).expect("an address");
    let contract = project.state().await.current_contract("fraud").expect("defined").pinned();
    store.lookup(&contract, ann()).await.expect("known");
    let shown = std::fs::read_to_string(&file).expect("there");
    let id = shown.split('_').nth(1).expect("three parts");
    CallersFile::change(&folder.join("callers.toml"), |callers| callers.revoke(id)).expect("there");
    let mut last = None;
    for _ in 0..100 {
        match store.lookup(&contract, ann()).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(error) => {
                last = Some(error);
                break;
            }
        }
    }
    let error = last.expect("within ten seconds");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
    assert!(!error.chain().contains(shown.trim()));
    // A client that runs takes a new token from its file.
    token(&folder, "worker", &[Scope::Read]);
    for _ in 0..100 {
        if store.lookup(&contract, ann()).await.is_ok() {
            server.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the new token is not known after ten seconds");
}

/// An authority, its certificate, and what it signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("randomness");
        let pem = params.self_signed(&key).expect("signs").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn sign(&self, folder: &Path, name: &str, names: &[&str]) {
        let names = names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("randomness");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).expect("writable");
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("writable");
    }
}

const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];

/// Certificates of one authority in a folder, and callers with tokens and a certificate.
fn with_tls(folder: &Path, authority: &Authority) -> Security {
    std::fs::write(folder.join("ca.pem"), &authority.pem).expect("writable");
    authority.sign(folder, "server", &LOCAL);
    authority.sign(folder, "client", &["worker-7.example"]);
    let callers = folder.join("callers.toml");
    let mapped = "\n[[certificate]]\nname = \"dns:worker-7.example\"\ncaller = \"worker 7\"\nscopes = [\"read\"]\n";
    let text = std::fs::read_to_string(&callers).expect("tokens were made") + mapped;
    std::fs::write(&callers, text).expect("writable");
    let tls = TlsFiles {
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
        client_ca: Some(folder.join("ca.pem")),
    };
    Security::read(SecurityFiles { callers: Some(callers), tls: Some(tls) }).expect("right")
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_clients_come_in_over_tls_with_a_token_or_a_certificate() {
    let (project, _) = deployed().await;
    project.apply(&format!("{DEFINITIONS}{DEFINED_SPINE}")).await.expect("a spine");
    let folder = project.folder.path().to_owned();
    let reader = token(&folder, "reader", &[Scope::Read]);
    let engineer = token(&folder, "engineer", &[Scope::Query]);
    let server = Running::start(&project, with_tls(&folder, &Authority::new("ours")), None).await;
    let shown = |file: PathBuf| std::fs::read_to_string(file).expect("there").trim().to_owned();
    let place = folder.to_string_lossy().into_owned();
    let arguments = vec![server.address.clone(), server.http.clone(), place, shown(reader), shown(engineer)];
    run_client("check_security.py", arguments).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_on_both_sides_and_exchanged_while_serving() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    token(&folder, "other", &[Scope::Push]);
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let server = Running::start(&project, with_tls(&folder, &ours), None).await;
    let address = format!("https://{}", server.address);
    let contract = project.state().await.current_contract("fraud").expect("defined").pinned();
    let certificate = |name: &str| Some((folder.join(format!("{name}.pem")), folder.join(format!("{name}.key"))));
    let look = async |ca: &str, certificate: Option<(PathBuf, PathBuf)>| {
        let access = Access { ca: Some(folder.join(ca)), certificate, ..Access::default() };
        RemoteFeatures::with_access(&address, access).expect("right").lookup(&contract, ann()).await.map(|_| ())
    };
    look("ca.pem", certificate("client")).await.expect("known");
    let error = look("ca.pem", None).await.expect_err("shows nothing");
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
    // A certificate that nobody is mapped from; one of another authority; a server of another authority.
    ours.sign(&folder, "stranger", &["stranger.example"]);
    let error = look("ca.pem", certificate("stranger")).await.expect_err("not mapped");
    assert!(error.chain().contains("dns:stranger.example"), "{error:?}");
    others.sign(&folder, "forged", &["worker-7.example"]);
    look("ca.pem", certificate("forged")).await.expect_err("of another authority");
    std::fs::write(folder.join("others.pem"), &others.pem).expect("writable");
    look("others.pem", certificate("client")).await.expect_err("of another authority");
    let plain = RemoteFeatures::new(&format!("http://{}", server.address)).expect("an address");
    plain.lookup(&contract, ann()).await.expect_err("not encrypted");

    // A half-written exchange changes nothing; a whole one is taken.
    std::fs::write(folder.join("server.pem"), "not a certificate").expect("writable");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    look("ca.pem", certificate("client")).await.expect("the former certificate holds");
    others.sign(&folder, "server", &LOCAL);
    for _ in 0..100 {
        if look("others.pem", certificate("client")).await.is_ok() {
            server.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the new certificate is not shown after ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_the_authority_of_its_certificate() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    token(&folder, "other", &[Scope::Push]);
    let (ours, others) = (Authority::new("ours"), Authority::new("others"));
    let server = Running::start(&project, with_tls(&folder, &ours), None).await;
    let contract = project.state().await.current_contract("fraud").expect("defined").pinned();
    // What vouches for the server does not change.
    std::fs::write(folder.join("servers-ca.pem"), &ours.pem).expect("writable");
    let certificate = Some((folder.join("client.pem"), folder.join("client.key")));
    let access = Access { ca: Some(folder.join("servers-ca.pem")), certificate, ..Access::default() };
    let store = RemoteFeatures::with_access(&format!("https://{}", server.address), access).expect("right");
    store.lookup(&contract, ann()).await.expect("known");
    std::fs::write(folder.join("ca.pem"), format!("{}{}", others.pem, ours.pem)).expect("writable");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    store.lookup(&contract, ann()).await.expect("the authority is still one of those");
    std::fs::write(folder.join("ca.pem"), &others.pem).expect("writable");
    for _ in 0..100 {
        if store.lookup(&contract, ann()).await.is_err() {
            // For good: nor does it get in anew.
            store.lookup(&contract, ann()).await.expect_err("of another authority");
            server.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the connection goes on ten seconds after its certificate's authority was removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_not_encrypted_yet_have_their_bound_too() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    token(&folder, "other", &[Scope::Push]);
    let server = Running::start(&project, with_tls(&folder, &Authority::new("ours")), None).await;
    let connect = async || tokio::net::TcpStream::connect(&server.http).await.expect("listens");
    // As many as the HTTP port has places, all of them silent.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(connect().await);
    }
    let mut refused = connect().await;
    let told = tokio::time::timeout(Duration::from_secs(5), refused.read(&mut [0; 8])).await;
    assert_eq!(told.expect("at once").expect("the end"), 0);
    drop(silent);
    for _ in 0..100 {
        let waiting = tokio::time::timeout(Duration::from_millis(500), connect().await.read(&mut [0; 8])).await;
        if waiting.is_err() {
            server.stop().await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("places that were given up are not free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_replaces_nothing_but_a_dead_socket() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let file = folder.join("precious.txt");
    std::fs::write(&file, "precious").expect("writable");
    let failed = async |socket: PathBuf| {
        let server = Running::start(&project, Security::open(), Some(socket)).await;
        server.ended.await.expect("no panic").expect_err("the path is taken")
    };
    assert_eq!(failed(file.clone()).await.kind(), ErrorKind::Invalid);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
    let socket = folder.join("store.sock");
    let living = std::os::unix::net::UnixListener::bind(&socket).expect("free");
    assert_eq!(failed(socket.clone()).await.kind(), ErrorKind::Busy);
    drop(living);
    let server = Running::start(&project, Security::open(), Some(socket.clone())).await;
    let store = RemoteFeatures::new(&format!("unix://{}", socket.display())).expect("an address");
    for _ in 0..100 {
        if store.act("status", "").await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    store.act("status", "").await.expect("answers");
    server.stop().await;
}

/// Runs the binary on a project.
async fn springhouse(project: &TestProject, arguments: &[&str]) -> Output {
    let folder = project.folder.path().to_owned();
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let run = move || Command::new(binary()).arg("--project").arg(folder).args(arguments).output().expect("runs");
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_tokens_and_refuses_to_serve_openly() {
    let project = TestProject::new(&[("ann", 10, 10, Some(1.0))]);
    project.apply(DEFINITIONS).await.expect("valid definitions");
    let settings = |text: &str| {
        let text = format!("store = \"store\"\n{text}");
        std::fs::write(project.folder.path().join("springhouse.toml"), text).expect("writable");
    };
    settings("");
    let error = async |arguments: &[&str]| {
        let output = springhouse(&project, arguments).await;
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let wide = "0.0.0.0:0";
    for arguments in [
        &["serve", "--listen", wide][..],
        &["serve", "--role", "worker", "--listen", wide],
        &["serve", "--listen", "127.0.0.1:0", "--http", wide],
        &["run", "--http", wide],
    ] {
        let said = error(arguments).await;
        assert!(said.contains("--without-authentication"), "{arguments:?}: {said}");
    }
    let said = error(&["token", "create", "--caller", "ann", "--scope", "read"]).await;
    assert!(said.contains("callers ="), "{said}");
    settings("callers = \"callers.toml\"\n");
    let said = error(&["serve", "--listen", "127.0.0.1:0"]).await;
    assert!(said.contains("springhouse token create"), "{said}");
    let made = springhouse(&project, &["token", "create", "--caller", "ann", "--scope", "read"]).await;
    let token = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    assert!(made.status.success() && token.starts_with("springhouse_"), "{made:?}");
    let said = error(&["serve", "--listen", wide]).await;
    assert!(said.contains("--without-encryption"), "{said}");
    let listed = springhouse(&project, &["token", "list"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let id = token.split('_').nth(1).expect("three parts");
    assert!(listed.contains(id) && listed.contains("ann") && !listed.contains(&token), "{listed}");
    let day = ["token", "create", "--caller", "bob", "--scope", "read", "--expires", "1 day"];
    assert!(springhouse(&project, &day).await.status.success());
    let listed = springhouse(&project, &["--json", "token", "list"]).await;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert!(listed[0]["expires"].is_null() && listed[1]["expires"].is_string(), "{listed}");
    assert_eq!(listed[1]["expired"], false);
    let said = error(&["token", "create", "--caller", "ann", "--scope", "root"]).await;
    assert!(said.contains("operate"), "{said}");
    assert!(springhouse(&project, &["token", "revoke", id]).await.status.success());
    assert!(error(&["token", "revoke", id]).await.contains("no such token"));
}

fn spine_command(spine: Option<&str>) -> TrainingSetCommand {
    TrainingSetCommand {
        contract: "fraud".to_owned(),
        spine: spine.map(|text| CommandSpine::Written(text.to_owned())),
        time: Some("t".to_owned()),
        parts: None,
        part: None,
    }
}

/// What the engineer of the foreign clients asks for, defined for those who read.
const DEFINED_SPINE: &str = "
CREATE SPINE asked EVENT TIME t
  AS SELECT 'ann' AS user_name, 'NL' AS country, TIMESTAMP '1970-01-01 00:00:10' AT TIME ZONE 'UTC' AS t
     UNION ALL SELECT 'ann', 'NL', TIMESTAMP '1970-01-01 00:00:09' AT TIME ZONE 'UTC' ORDER BY t DESC;";

const SPINE: &str = "SELECT user_name, 'NL' AS country, paid_at AS t FROM payments";

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_has_training_sets_of_defined_spines_and_runs_no_text() {
    let (project, _) = deployed().await;
    project.apply(&format!("{DEFINITIONS}{DEFINED_SPINE}")).await.expect("a spine");
    let folder = project.folder.path().to_owned();
    let reader = token(&folder, "reader", &[Scope::Read]);
    let shown = format!("Bearer {}", std::fs::read_to_string(reader).expect("there").trim());
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    let mut client = FlightServiceClient::new(channel.connect_lazy());
    let asked = |spine: CommandSpine| {
        let command = TrainingSetCommand { spine: Some(spine), time: None, ..spine_command(None) };
        let mut request = tonic::Request::new(Ticket::new(FlightCommand::TrainingSet(command).to_bytes()));
        request.metadata_mut().insert("authorization", shown.parse().expect("letters"));
        request
    };
    let answer = client.do_get(asked(CommandSpine::defined("asked"))).await.expect("allowed").into_inner();
    let batches = FlightRecordBatchStream::new_from_flight_data(answer.map_err(Into::into));
    let batches: Vec<RecordBatch> = batches.try_collect().await.expect("whole");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    // A text is never taken for a name, whatever it says.
    for text in [SPINE, "payments.parquet", "asked", "\"asked\""] {
        let refused = client.do_get(asked(CommandSpine::Written(text.to_owned()))).await;
        let status = refused.map(|_| ()).expect_err("an engineer's");
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{text}: {status:?}");
        assert!(status.message().contains("query"), "{text}: {status:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_of_the_wire_have_places_and_schemas_run_nothing() {
    let (project, _) = deployed().await;
    let queries = WireQueries::start(project.jobs()).expect("threads");
    let fails = format!("{SPINE} WHERE CAST(user_name AS BIGINT) > 0");
    queries.schema(&spine_command(Some(&fails))).await.expect("is planned alone");
    queries.training_set(&spine_command(Some(&fails)), None).await.map(|_| ()).expect_err("is run");
    let error = queries.schema(&spine_command(None)).await.expect_err("no spine").to_string();
    assert!(error.contains("DoExchange"), "{error}");

    let mut open = Vec::new();
    let command = spine_command(Some(SPINE));
    while open.len() < PLACES {
        // The place of the query that failed may be given back a moment later.
        match queries.training_set(&command, None).await {
            Ok(set) => open.push(set),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
        }
    }
    // All of them are whole, and give their places back.
    for (schema, batches) in open {
        let batches: Vec<RecordBatch> = batches.try_collect().await.expect("whole");
        assert!(batches.iter().all(|batch| batch.schema() == schema));
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Spines that never end hold their places until they are given up.
    let waiting = async || {
        let spine = (spine_batch().schema(), stream::pending::<Result<RecordBatch>>().boxed());
        queries.training_set(&spine_command(None), Some(spine)).await.map(|_| ())
    };
    {
        let mut held: Vec<_> = (0..PLACES).map(|_| Box::pin(waiting())).collect();
        let all = futures::future::select_all(held.iter_mut());
        assert!(tokio::time::timeout(Duration::from_secs(2), all).await.is_err(), "each waits in its place");
        let error = queries.training_set(&command, None).await.map(|_| ()).expect_err("no place");
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("try again"), "{error:?}");
    }
    let spine = (spine_batch().schema(), stream::iter([Ok(spine_batch())]).boxed());
    let mut spine = Some(spine);
    for _ in 0..100 {
        let Some(given) = spine.take() else { break };
        match queries.training_set(&spine_command(None), Some(given)).await {
            Ok((_, batches)) => {
                let batches: Vec<RecordBatch> = batches.try_collect().await.expect("whole");
                assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 1);
                return;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                spine = Some((spine_batch().schema(), stream::iter([Ok(spine_batch())]).boxed()));
            }
        }
    }
    panic!("a place that was given up is not free");
}

/// Pushes an event as a producer's batch; whether it was taken, and not passed over.
async fn push_as(store: &RemoteFeatures, producer: &str, sequence: u64) -> Result<bool> {
    let events = crate::push::batch(&[("ann", 50, 50, Some(1.0))]);
    let mut pusher = store.pusher("paid", events.schema()).await?;
    let header = PushHeader { producer: Some(producer.to_owned()), sequence: Some(sequence), watermark: None };
    pusher.send(&events, &header).await?;
    pusher.ack().await.map(|ack| !ack.duplicate)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producers_name_belongs_to_who_used_it_and_its_sequences_can_be_given_back() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let [ann, bob, op] = [("ann", Scope::Push), ("bob", Scope::Push), ("op", Scope::Operate)]
        .map(|(caller, scope)| token(&folder, caller, &[scope]));
    let as_caller = |server: &Running, token: &PathBuf| {
        let access = Access { token_file: Some(token.clone()), ..Access::default() };
        RemoteFeatures::with_access(&format!("http://{}", server.address), access).expect("an address")
    };
    let server = Running::start(&project, with_tokens(&folder), None).await;
    assert!(push_as(&as_caller(&server, &ann), "till", 1).await.expect("nobody's yet"));
    let burn = push_as(&as_caller(&server, &bob), "till", 1_000_000).await.expect_err("another's");
    assert_eq!(burn.kind(), ErrorKind::Forbidden, "{burn:?}");
    let said = burn.chain();
    assert!(said.contains("belongs to: ann") && said.contains("--hand-over till --to bob"), "{said}");
    assert!(push_as(&as_caller(&server, &bob), "other till", 1).await.expect("a name of its own"));
    assert!(push_as(&as_caller(&server, &ann), "till", 2).await.expect("nothing was used up"));
    as_caller(&server, &op).act("flush", "").await.expect("operates");
    server.stop().await;

    // It is known after a restart, and on another machine that has the store alone.
    without_log(&folder).await;
    let server = Running::start(&project, with_tokens(&folder), None).await;
    push_as(&as_caller(&server, &bob), "till", 9).await.expect_err("another's still");
    let change = async |store: RemoteFeatures, change: &str| {
        let body = format!(r#"{{"source": "paid", "change": ["till", {change}], "why": "moved"}}"#);
        store.act("change_producer", &body).await
    };
    let hand_over = r#"{"hand_over": "bob"}"#;
    let error = change(as_caller(&server, &bob), hand_over).await.expect_err("does not operate");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error:?}");
    let changed = change(as_caller(&server, &op), hand_over).await.expect("operates");
    let changed: serde_json::Value = serde_json::from_slice(&changed).expect("JSON");
    assert_eq!((&changed["owner"], &changed["corrected"]["by"]["who"]), (&"bob".into(), &"op".into()), "{changed}");
    push_as(&as_caller(&server, &ann), "till", 3).await.expect_err("handed over");
    assert!(push_as(&as_caller(&server, &bob), "till", 1_000_000).await.expect("its own now"));
    assert!(!push_as(&as_caller(&server, &bob), "till", 3).await.expect("passed over"));
    change(as_caller(&server, &op), r#"{"sequence": 2}"#).await.expect("operates");
    assert!(push_as(&as_caller(&server, &bob), "till", 3).await.expect("its next"));
    server.stop().await;
    without_log(&folder).await;
    let server = Running::start(&project, with_tokens(&folder), None).await;
    assert!(push_as(&as_caller(&server, &bob), "till", 4).await.expect("counted on from what was set back"));
    server.stop().await;

    // Where nobody is asked who they are a name is everybody's, as before.
    let server = Running::start(&project, Security::open(), None).await;
    let store = RemoteFeatures::new(&format!("http://{}", server.address)).expect("an address");
    assert!(push_as(&store, "till", 5).await.expect("everybody's"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_would_take_a_hundredfold_is_refused_before_it_is_decoded() {
    let (project, _) = deployed().await;
    let server = Running::start(&project, Security::open(), None).await;
    let channel = Channel::from_shared(format!("http://{}", server.address)).expect("an address").connect_lazy();
    // Two bytes each on the wire.
    let inputs = vec![InferInputTensor::default(); 400_000];
    let request = ModelInferRequest { model_name: "fraud".to_owned(), inputs, ..ModelInferRequest::default() };
    let predict = GrpcInferenceServiceClient::new(channel.clone());
    let packed = GrpcInferenceServiceClient::new(channel.clone()).send_compressed(CompressionEncoding::Gzip);
    for mut client in [predict, packed] {
        let error = client.model_infer(request.clone()).await.expect_err("would take 100 MB");
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        assert!(error.message().contains("too much memory") && error.message().contains("fewer rows"), "{error}");
    }
    let path = FlightDescriptor::new_path(vec![String::new(); 1_000_000]);
    let error = FlightServiceClient::new(channel).get_schema(path).await.expect_err("would take 24 MB");
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    assert!(error.message().contains("too much memory"), "{error}");
    // Who sends what people send is answered.
    let client = PredictClient::new(&format!("http://{}", server.address)).expect("an address");
    let metadata = client.metadata("fraud").await.expect("answers");
    let text = |value: &str| vec![Some(value.to_owned())];
    let columns: Vec<TextColumn> = vec![("user_name".to_owned(), text("ann")), ("country".to_owned(), text("NL"))];
    client.infer(&metadata, &columns).await.expect("answers");
    server.stop().await;
}

/// Asks for a training set with a spine that never ends, as whoever has this token.
async fn endless_spine(address: &str, token: &Path) -> Result<(), tonic::Status> {
    let command = br#"{"training_set": {"contract": "fraud", "time": "t"}}"#;
    let mut first = crate::bounds::messages(&spine_batch(), None).into_iter().next().expect("a schema");
    first.flight_descriptor = Some(FlightDescriptor::new_cmd(command.as_slice()));
    let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
    let mut request = tonic::Request::new(stream::iter([first]).chain(stream::pending::<FlightData>()));
    let token = std::fs::read_to_string(token).expect("there");
    let token = format!("Bearer {}", token.trim()).parse().expect("ascii");
    request.metadata_mut().insert("authorization", token);
    FlightServiceClient::new(channel).do_exchange(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_caller_never_takes_the_places_of_all_others() {
    let (project, _) = deployed().await;
    let folder = project.folder.path().to_owned();
    let (ann, bob) = (token(&folder, "ann", &[Scope::Read]), token(&folder, "bob", &[Scope::Read]));
    let server = Running::start(&project, with_tokens(&folder), None).await;
    let waits = async |token: &Path| {
        tokio::time::timeout(Duration::from_millis(700), endless_spine(&server.address, token)).await
    };
    let held: Vec<JoinHandle<_>> = (0..PLACES / 2)
        .map(|_| {
            let (address, ann) = (server.address.clone(), ann.clone());
            tokio::spawn(async move { endless_spine(&address, &ann).await })
        })
        .collect();
    let mut refused = None;
    for _ in 0..20 {
        // The others may not have come yet.
        if let Ok(answered) = waits(&ann).await {
            refused = Some(answered.expect_err("the spine does not end"));
            break;
        }
    }
    let refused = refused.expect("it has half of the places");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("caller: ann") && refused.message().contains("share: 4"), "{refused}");
    assert!(waits(&bob).await.is_err(), "another is not refused: it waits for its spine");
    held.iter().for_each(JoinHandle::abort);
    for _ in 0..50 {
        // Places are given back when who held them has gone.
        if waits(&ann).await.is_err() {
            server.stop().await;
            return;
        }
    }
    panic!("places that were given up are not free");
}

fn spine_batch() -> RecordBatch {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![20_000_000]).with_timezone("UTC"));
    RecordBatch::try_from_iter([("user_name", text("ann")), ("country", text("NL")), ("t", times)]).expect("columns")
}
