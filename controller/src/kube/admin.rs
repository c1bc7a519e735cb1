//! What people do with a cluster by a command: install the custom resources, and bring objects there or fetch them.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::Value;
use windlass_crds::schema::{self, Kind, Rules};

use super::cluster::{Connection, Error, request};
use super::object::{JOB_ANNOTATION, ObjectKind};

/// The oldest minor version of Kubernetes 1 that knows rules in CEL.
const CEL: u32 = 25;
/// How long an API server may take to serve a custom resource that was just installed.
const ESTABLISH: Duration = Duration::from_secs(30);
/// Who installs and exports, in the objects' managed fields.
const MANAGER: &str = "windlass";

/// What was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The version of the API server, such as `1.20`.
    pub server: String,
    /// Whether the custom resources carry rules between fields.
    pub rules: Rules,
    /// Their names.
    pub names: Vec<String>,
}

/// Installs the custom resources, or brings them up to date; they are served when this returns.
///
/// # Errors
/// What the API server refuses, and [`Error::TimedOut`] where it does not serve them soon.
pub async fn install_crds(connection: &Connection) -> Result<Installed, Error> {
    let client = connection.client()?;
    let version = request("tell its version", client.apiserver_version()).await?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let (major, minor) = (digits(&version.major), digits(&version.minor));
    let known = |text: &str| text.parse::<u32>().unwrap_or(0);
    let rules = if (known(&major), known(&minor)) >= (1, CEL) { Rules::Cel } else { Rules::None };
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let mut names = Vec::new();
    for crd in schema::crds(rules) {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let params = PatchParams::apply(MANAGER).force();
        request("apply a custom resource definition", api.patch(&name, &params, &Patch::Apply(&crd))).await?;
        names.push(name);
    }
    let all_served = async {
        for name in &names {
            while !is_established(&request("get a custom resource definition", api.get(name)).await?) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(ESTABLISH, all_served).await {
        Ok(result) => result?,
        Err(_) => return Err(Error::TimedOut { operation: "serve the custom resources" }),
    }
    Ok(Installed { server: format!("{major}.{minor}"), rules, names })
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let status = crd.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// What became of an object to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exported {
    /// It is in the cluster as its manifest says.
    Applied,
    /// The cluster has one of that name, which was not exported from this job; it is left as it is.
    Kept,
}

/// Makes an object in the cluster as this manifest says, where there is none of its name. A job that the cluster's Windlass has
/// already, with the uid that `job` names, becomes that object's; it is not run again.
///
/// # Errors
/// What the API server refuses.
pub async fn apply_object(
    connection: &Connection,
    kind: Kind,
    manifest: &Value,
    job: Option<&str>,
) -> Result<Exported, Error> {
    let mut manifest = manifest.clone();
    if let Some(uid) = job {
        manifest["metadata"]["annotations"][JOB_ANNOTATION] = uid.into();
    }
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = manifest["metadata"]["namespace"].as_str();
    let api = api(&connection.client()?, kind, namespace);
    if let Some(found) = request("get an object", api.get_opt(&name)).await? {
        let annotations = found.metadata.annotations.unwrap_or_default();
        if job.is_none() || annotations.get(JOB_ANNOTATION).map(String::as_str) != job {
            return Ok(Exported::Kept);
        }
    }
    let params = PatchParams::apply(MANAGER).force();
    request("apply an object", api.patch(&name, &params, &Patch::Apply(&manifest))).await?;
    Ok(Exported::Applied)
}

/// The objects of a kind, in one namespace or in all, as they are there.
///
/// # Errors
/// What the API server refuses.
pub async fn list_objects(
    connection: &Connection,
    kind: Kind,
    namespace: Option<&str>,
) -> Result<Vec<Value>, Error> {
    let api = api(&connection.client()?, kind, namespace.filter(|_| kind.is_namespaced()));
    let mut objects = Vec::new();
    let mut params = ListParams::default().limit(500);
    loop {
        let page = request("list objects", api.list(&params)).await?;
        for mut object in page.items {
            object.types = Some(kube::api::TypeMeta {
                api_version: windlass_crds::API_VERSION.to_owned(),
                kind: kind.name().to_owned(),
            });
            if let Ok(value) = serde_json::to_value(&object) {
                objects.push(value);
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let kind = match kind {
        Kind::NodeConfig => ObjectKind::Node,
        Kind::SandboxJob => ObjectKind::Job,
        Kind::JobTemplate => ObjectKind::Template,
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind.resource()),
        None => Api::all_with(client.clone(), &kind.resource()),
    }
}
