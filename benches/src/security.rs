//! What it costs to ask callers who they are: the same house with a file of tokens, against one that answers everybody.

use springhouse_featurestore::time::Clock;
use springhouse_featurestore::{Error, Result};
use springhouse_serving::generated::inference::ModelInferRequest;
use springhouse_serving::generated::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use springhouse_serving::security::{CallersFile, Scope, Security, SecurityFiles};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::house::{House, Memory};
use crate::load::{CALLERS, Caller, compare, say};
use crate::predictions::{client, request};

/// Asks the same again and again, and shows a token each time.
struct Asker {
    client: GrpcInferenceServiceClient<Channel>,
    request: ModelInferRequest,
    token: MetadataValue<Ascii>,
}

impl Caller for Asker {
    async fn call(&mut self) -> Result<()> {
        let mut request = tonic::Request::new(self.request.clone());
        request.metadata_mut().insert("authorization", self.token.clone());
        let answer = self.client.model_infer(request).await;
        answer.map(|_| ()).map_err(|status| Error::unavailable(status.message().to_owned()))
    }
}

/// Measures predictions of 1 and of 100 rows.
pub async fn measure(house: &House) -> Result<()> {
    let file = house.folder.path().join("callers.toml");
    let token = CallersFile::change(&file, |callers| callers.create("bench", &[Scope::Predict], house.clock.now()))?;
    let shown = format!("Bearer {}", token.reveal());
    let shown = MetadataValue::try_from(shown).map_err(|error| Error::internal("no header").source(error))?;
    let known = Security::read(SecurityFiles { callers: Some(file), tls: None })?;
    let asking = house.serve_on(&house.store, "asking", Memory::Warm, known).await?;
    let open = house.serve("open", Memory::Warm).await?;
    for rows in [1, 100] {
        let request = request(house, rows).await?;
        let asker = |address| -> Result<Asker> {
            Ok(Asker { client: client(address)?, request: request.clone(), token: shown.clone() })
        };
        let ours = (0..CALLERS).map(|_| asker(asking)).collect::<Result<Vec<_>>>()?;
        let peer = (0..CALLERS).map(|_| asker(open)).collect::<Result<Vec<_>>>()?;
        let (compared, latencies) = compare(ours, peer).await?;
        say(&compared.row(
            &format!("ModelInfer of {rows} rows with a token that is checked, peer: everybody is answered"),
            "/s",
            &latencies,
        ));
    }
    Ok(())
}
