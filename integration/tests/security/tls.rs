//! Certificates of servers and clients: checked on both sides, exchanged while connections are open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use springhouse_featurestore::ErrorKind;
use springhouse_serving::FeatureSource;
use springhouse_serving::flight::RemoteFeatures;
use springhouse_serving::security::{Access, Scope, Security, SecurityFiles, TlsFiles};
use tokio::io::AsyncReadExt;

use super::queries::DEFINED_SPINE;
use super::{Running, ann, token};
use crate::project::DEFINITIONS;
use crate::wire::{deployed, run_client};

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
