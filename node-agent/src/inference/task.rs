//! The task: keeps the server as the configuration says, in rounds that begin with a look.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use windlass_crds::inference::{InferenceStatus, Model};
use windlass_crds::protocol::{ImageRules, InferenceBackend};
use windlass_sandbox::engine::{Containers, Engines};

use super::api::{Api, Progress};
use super::container::{self, NAME};
use super::place::{EXTERNAL, Endpoint, INVALID, Place};
use super::{InferenceHandle, State, Trouble, is_near, models, told};
use crate::backoff::Backoff;
use crate::capabilities::Capabilities;
use crate::config_sync::{ConfigState, InForce};
use crate::ids::IdSource;
use crate::readiness::{Part, Readiness};
use crate::watch;

/// Between two looks at a server that works.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two looks at one that is coming up.
const STARTING: Duration = Duration::from_millis(300);
/// The first wait after something went wrong, and the longest: a node that needs its server is ready soon after it can be.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// The longest wait on a node that does not need it.
const UNHURRIED: Duration = Duration::from_secs(60);
/// A server that has run so long and ends starts over at the first wait.
const STEADY: Duration = Duration::from_secs(60);
/// Looks in a row that a server that runs may leave unanswered before it is started anew.
const MISSES: u32 = 6;
/// The word for a server that is coming up.
const STARTING_UP: &str = "Starting";
/// Steps of a download that are reported, in percent; the log has the same.
const PROGRESS_STEP: u64 = 20;
/// How long an engine may take to end the server when the agent ends.
const END_WAIT: Duration = Duration::from_secs(30);

/// What the configuration says.
#[derive(Clone, Debug, PartialEq)]
struct Desired {
    backend: InferenceBackend,
    images: ImageRules,
    external: bool,
}

impl Desired {
    /// Whether steps may use a server at this address.
    fn allows(&self, address: IpAddr) -> bool {
        self.external || is_near(address)
    }

    /// Whether steps keep a server that is known while a round does not tell where it is: only the one that is still configured and
    /// allowed, and not if the round has found that the URL leads somewhere else now.
    fn keeps(&self, known: &Endpoint, round: &Round) -> bool {
        let refused = match round {
            Round::Settled { .. } => false,
            Round::Not(trouble) => matches!(trouble.reason, INVALID | EXTERNAL),
        };
        !refused && known.configured == Place::of(&self.backend) && self.allows(known.address.ip())
    }
}

/// Keeps the server of models.
pub(crate) struct InferenceTask {
    pub(crate) handle: InferenceHandle,
    pub(crate) engines: Engines,
    pub(crate) in_force: InForce,
    pub(crate) config: watch::Receiver<ConfigState>,
    pub(crate) readiness: Readiness,
    pub(crate) capabilities: Arc<Capabilities>,
    /// Tells the lease keeper to beat now.
    pub(crate) hurry: Arc<Notify>,
    pub(crate) ids: Arc<dyn IdSource>,
    /// The folder of models where none is named.
    pub(crate) models: PathBuf,
}

/// What is remembered from round to round.
struct Memory {
    backoff: Backoff,
    /// Looks in a row that were not answered.
    misses: u32,
    /// When the server was last started by this run of the agent.
    started: Option<Instant>,
    /// The client of the server that was found last.
    api: Option<Api>,
}

impl Memory {
    /// The client of a server: the one that there is, if the server is the same.
    fn api(&mut self, endpoint: &Endpoint) -> Result<Api, Trouble> {
        match &self.api {
            Some(api) if api.endpoint() == endpoint => Ok(api.clone()),
            Some(_) | None => Ok(self.api.insert(Api::new(endpoint)?).clone()),
        }
    }
}

/// How a round has ended.
enum Round {
    /// Everything is as it should be.
    Settled { version: Option<String>, models: Vec<Model> },
    /// Something is not, or not yet.
    Not(Trouble),
}

impl InferenceTask {
    /// Keeps the server, for ever.
    pub(crate) async fn run(mut self) -> std::convert::Infallible {
        let mut stop = self.handle.stop.subscribe();
        let mut current: Option<Desired> = None;
        let mut known = false;
        loop {
            let desired = self.desired();
            if !known || desired != current {
                known = self.in_force.get().is_some();
                current.clone_from(&desired);
                self.announce(desired.as_ref());
            }
            let keep = self.keep(desired.as_ref(), known);
            let mut config = self.config.clone();
            // Cancel-safe: a round can be dropped anywhere, for the next one begins with a look; the others only look.
            tokio::select! {
                biased;
                stopping = stop.wait_for(|stop| *stop) => {
                    drop(stopping);
                    self.end().await;
                }
                never = keep => match never {},
                () = self.changed(&mut config, current.as_ref()) => {}
            }
            self.config = config;
        }
    }

    /// Returns when the configuration says something else than before.
    async fn changed(&self, config: &mut watch::Receiver<ConfigState>, current: Option<&Desired>) {
        let had = self.in_force.get().is_some();
        loop {
            if config.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if self.desired().as_ref() != current || self.in_force.get().is_some() != had {
                return;
            }
        }
    }

    fn desired(&self) -> Option<Desired> {
        let applied = self.in_force.get()?;
        let backend = applied.configuration.inference_backend.clone().filter(|backend| backend.enabled)?;
        let rules = &applied.configuration.policy.sandbox;
        Some(Desired { backend, images: rules.images.clone(), external: rules.external_models })
    }

    /// Says what a new configuration means before anything is done about it.
    fn announce(&self, desired: Option<&Desired>) {
        match desired {
            Some(desired) => {
                tracing::info!(engine = %desired.backend.engine, required = desired.backend.required, "inference is configured");
                let trouble = Trouble::passing(STARTING_UP, "the server of models is being started");
                self.publish(desired, None, None, &Round::Not(trouble));
            }
            None => self.tell(State::default(), None),
        }
    }

    /// Keeps the server as it is desired, until this future is dropped.
    async fn keep(&self, desired: Option<&Desired>, known: bool) -> std::convert::Infallible {
        let longest = match desired {
            Some(desired) if !desired.backend.required => UNHURRIED,
            Some(_) | None => RETRY.1,
        };
        let mut memory =
            Memory { backoff: Backoff::new(RETRY.0, longest), misses: 0, started: None, api: None };
        let Some(desired) = desired else {
            if known {
                self.keep_away(&mut memory).await;
            }
            return std::future::pending().await;
        };
        let mut said: Option<Trouble> = None;
        let mut failed: Option<Trouble> = None;
        let mut others_gone = false;
        loop {
            if !others_gone {
                others_gone = self.remove_from_others(desired).await;
            }
            let (endpoint, round) = self.round(desired, &mut memory).await;
            let runtime = self.runtime(desired);
            let wait = match &round {
                Round::Settled { models, .. } => {
                    if memory.started.is_none_or(|started| started.elapsed() > STEADY) {
                        memory.backoff.reset();
                    }
                    memory.misses = 0;
                    if said.take().is_some() || self.handle.unusable().is_some() {
                        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
                        tracing::info!(models = names.join(","), "the server of models is ready");
                    }
                    LOOK_EVERY
                }
                Round::Not(trouble) => {
                    if said.as_ref() != Some(trouble) {
                        said = Some(trouble.clone());
                        if trouble.passing {
                            tracing::info!(
                                reason = trouble.reason,
                                message = trouble.message,
                                "the server of models is not ready yet"
                            );
                        } else {
                            tracing::warn!(
                                reason = trouble.reason,
                                error = trouble.message,
                                "the server of models is not ready"
                            );
                        }
                    }
                    if trouble.passing { STARTING } else { memory.backoff.next(&*self.ids) }
                }
            };
            // What went wrong stays said while it is tried again, so that nobody sees a server come and go.
            let tries_again =
                matches!((&round, &failed), (Round::Not(trouble), Some(_)) if trouble.reason == STARTING_UP);
            if !tries_again {
                failed = match &round {
                    Round::Not(trouble) if !trouble.passing => Some(trouble.clone()),
                    Round::Not(_) | Round::Settled { .. } => None,
                };
                self.publish(desired, endpoint, runtime, &round);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One round: looks, and does what is next to be done.
    async fn round(&self, desired: &Desired, memory: &mut Memory) -> (Option<Endpoint>, Round) {
        let endpoint = match Place::of(&desired.backend).find(|address| desired.allows(address)).await {
            Ok(endpoint) => endpoint,
            Err(trouble) => return (None, Round::Not(trouble)),
        };
        let round = match self.serve(desired, &endpoint, memory).await {
            Ok(settled) => settled,
            Err(trouble) => Round::Not(trouble),
        };
        (Some(endpoint), round)
    }

    async fn serve(
        &self,
        desired: &Desired,
        endpoint: &Endpoint,
        memory: &mut Memory,
    ) -> Result<Round, Trouble> {
        let backend = &desired.backend;
        let engine = match backend.url {
            Some(_) => None,
            None => {
                let engine = container::engine(backend, &self.engines)?;
                self.ensure_container(engine, desired, memory).await?;
                Some(engine)
            }
        };
        let api = memory.api(endpoint)?;
        let version = match api.probe(backend.engine).await {
            Ok(version) => version,
            Err(trouble) => return Err(self.unanswered(engine, trouble, memory).await),
        };
        memory.misses = 0;
        let mut present = api.models(backend.engine).await?;
        let plan = models::plan(backend, &present)?;
        if plan != models::Plan::default() {
            for (index, model) in plan.pull.iter().enumerate() {
                let of = format!("{} of {}", index + 1, plan.pull.len());
                self.pull(&api, desired, model, &of).await?;
            }
            for model in &plan.delete {
                tracing::info!(model, "a model that is not listed is removed");
                api.delete(model).await?;
            }
            present = api.models(backend.engine).await?;
            let left = models::plan(backend, &present)?;
            if let Some(model) = left.pull.first() {
                let message =
                    format!("the server said that it has fetched the model `{model}`, and does not list it");
                return Err(Trouble::new("ModelPullFailed", message));
            }
        }
        if present.is_empty() {
            let message =
                "the server has no model; list some in inference.models, or put some into its folder";
            return Err(Trouble::new("NoModel", message));
        }
        Ok(Round::Settled { version, models: present })
    }

    /// What it means that a server does not answer: one of ours may be coming up, or has to be started anew.
    async fn unanswered(
        &self,
        engine: Option<&Containers>,
        trouble: Trouble,
        memory: &mut Memory,
    ) -> Trouble {
        let (Some(engine), false) = (engine, trouble.passing) else { return trouble };
        if trouble.reason == "Unreachable" && memory.started.is_some_and(|started| started.elapsed() < STEADY)
        {
            return Trouble::passing(STARTING_UP, "the server of models is being started");
        }
        memory.misses += 1;
        if memory.misses < MISSES {
            return trouble;
        }
        memory.misses = 0;
        tracing::warn!(error = trouble.message, "the server of models does not answer and is started anew");
        match engine.remove_service(NAME).await {
            Ok(()) => trouble,
            Err(error) => container::engine_trouble(&error),
        }
    }

    /// Sees to it that the container runs and is the right one.
    async fn ensure_container(
        &self,
        engine: &Containers,
        desired: &Desired,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        let backend = &desired.backend;
        let request = container::image(backend, &desired.images)?;
        let volume = container::volume(backend, &self.models)?;
        let made_from = container::made_from(backend, &request, &volume);
        let failed = |error| container::engine_trouble(&error);
        let state = engine.service_state(NAME).await.map_err(failed)?;
        if let Some(state) = state {
            match (state.made_from.as_deref() == Some(&*made_from), state.running) {
                (true, true) => return Ok(()),
                (true, false) if memory.started.take().is_some() => {
                    // It was started by this run, and has ended: that is told before it is tried again.
                    let trouble = container::ended(engine, &state).await;
                    engine.remove_service(NAME).await.map_err(failed)?;
                    return Err(trouble);
                }
                (true, false) | (false, _) => {
                    tracing::info!("the server of models is made anew");
                    engine.remove_service(NAME).await.map_err(failed)?;
                }
            }
        }
        container::check_port(container::port(backend))?;
        let mut last = String::new();
        let mut progress = |line: String| {
            if last.is_empty() {
                let message = format!("the image {} is being fetched", request.reference);
                let pulling = Round::Not(Trouble::passing("PullingImage", message));
                self.publish(desired, None, Some(engine.kind().to_string()), &pulling);
            }
            if line != last {
                tracing::debug!(image = %request.reference, progress = line, "image of the server of models is being fetched");
                last = line;
            }
        };
        let image = engine.ensure_image(&request, &mut progress).await.map_err(failed)?;
        let service = container::service(backend, image.id, made_from, volume);
        engine.start_service(&service).await.map_err(failed)?;
        tracing::info!(engine = %engine.kind(), image = %request.reference, port = container::port(backend), "the server of models was started");
        memory.started = Some(Instant::now());
        Ok(())
    }

    /// Fetches a model and tells how that goes.
    async fn pull(&self, api: &Api, desired: &Desired, model: &str, of: &str) -> Result<(), Trouble> {
        let mut told: Option<u64> = None;
        let runtime = self.runtime(desired);
        let mut progress = |progress: Progress| {
            let percent = match progress.bytes {
                Some((have, all)) if all > 0 => {
                    have.saturating_mul(100) / all / PROGRESS_STEP * PROGRESS_STEP
                }
                Some(_) | None => 0,
            };
            if told.is_some_and(|told| percent <= told) {
                return;
            }
            told = Some(percent);
            tracing::info!(model, percent, status = progress.status, "a model is being fetched");
            let message = format!("the model `{model}` is being fetched ({of}, {percent} %)");
            let round = Round::Not(Trouble::passing("PullingModel", message));
            self.publish(desired, Some(api.endpoint().clone()), runtime.clone(), &round);
        };
        api.pull(model, &mut progress).await
    }

    fn runtime(&self, desired: &Desired) -> Option<String> {
        let ours = desired.backend.url.is_none();
        let engine = ours.then(|| container::engine(&desired.backend, &self.engines).ok()).flatten();
        engine.map(|engine| engine.kind().to_string())
    }

    /// Removes what another engine runs of an earlier configuration. Returns whether nothing is left.
    async fn remove_from_others(&self, desired: &Desired) -> bool {
        let chosen = match desired.backend.url {
            Some(_) => None,
            None => container::engine(&desired.backend, &self.engines).ok().map(Containers::kind),
        };
        let mut gone = true;
        for engine in self.engines.iter().filter(|engine| Some(engine.kind()) != chosen) {
            gone &= remove(engine).await;
        }
        gone
    }

    /// Sees to it that there is no server.
    async fn keep_away(&self, memory: &mut Memory) {
        loop {
            let mut gone = true;
            for engine in self.engines.iter() {
                gone &= remove(engine).await;
            }
            if gone {
                return;
            }
            tokio::time::sleep(memory.backoff.next(&*self.ids)).await;
        }
    }

    /// Ends what runs, says so, and does nothing more.
    async fn end(&self) -> std::convert::Infallible {
        for engine in self.engines.iter() {
            if tokio::time::timeout(END_WAIT, remove(engine)).await.is_err() {
                tracing::warn!(engine = %engine.kind(), "the server of models could not be ended in time");
            }
        }
        self.handle.stopped.notify_waiters();
        std::future::pending().await
    }

    fn publish(&self, desired: &Desired, endpoint: Option<Endpoint>, runtime: Option<String>, round: &Round) {
        let backend = &desired.backend;
        let mut status = InferenceStatus {
            engine: backend.engine,
            url: endpoint.as_ref().map(Endpoint::url).unwrap_or_default(),
            runtime,
            ..InferenceStatus::default()
        };
        match round {
            Round::Settled { version, models } => {
                status.ready = true;
                "Serving".clone_into(&mut status.reason);
                status.message =
                    format!("{} {}", models.len(), if models.len() == 1 { "model" } else { "models" });
                status.version.clone_from(version);
                status.models.clone_from(models);
            }
            Round::Not(trouble) => {
                trouble.reason.clone_into(&mut status.reason);
                status.message.clone_from(&trouble.message);
            }
        }
        let supported = backend.url.is_some() || self.engines.iter().next().is_some();
        let cause = (backend.required && !status.ready)
            .then(|| format!("inference is required and not there: {}: {}", status.reason, status.message));
        let existing = backend.url.is_some();
        let told = told(status, backend.required, existing, supported);
        // A step that runs finds its server again where it was, so the address stays known while it is looked after.
        let known = || self.handle.state.borrow().endpoint.clone();
        let endpoint = endpoint.or_else(|| known().filter(|known| desired.keeps(known, round)));
        self.tell(State { told: Some(told), endpoint }, cause);
    }

    /// Tells everybody whom it concerns, if it is something new.
    fn tell(&self, state: State, cause: Option<String>) {
        let changed = self.handle.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
        let before = self.readiness.not_ready();
        self.readiness.set(Part::Inference, cause);
        if changed {
            self.capabilities.changed();
        }
        if self.readiness.not_ready() != before {
            // The controller hears it now and not with the next beat.
            self.hurry.notify_one();
        }
    }
}

/// Removes an engine's container; says whether it is gone.
async fn remove(engine: &Containers) -> bool {
    match engine.service_state(NAME).await {
        Ok(None) => true,
        Ok(Some(_)) => match engine.remove_service(NAME).await {
            Ok(()) => {
                tracing::info!(engine = %engine.kind(), "the server of models was ended");
                true
            }
            Err(error) => {
                tracing::warn!(engine = %engine.kind(), error = %crate::error_chain(&error), "the server of models cannot be ended; trying again");
                false
            }
        },
        Err(error) => {
            tracing::warn!(engine = %engine.kind(), error = %crate::error_chain(&error), "an engine does not tell whether it runs a server of models; asking again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::backend;
    use super::*;

    #[test]
    fn steps_keep_the_server_only_while_it_is_the_configured_and_allowed_one() {
        let desired = |url: Option<&str>, external| Desired {
            backend: InferenceBackend { url: url.map(str::to_owned), ..backend() },
            images: ImageRules::default(),
            external,
        };
        let known = |desired: &Desired, ip: [u8; 4]| Endpoint {
            configured: Place::of(&desired.backend),
            address: (ip, 80).into(),
            host: "models:80".to_owned(),
            prefix: String::new(),
            tls: None,
            authorization: None,
        };
        let not = |reason| Round::Not(Trouble::new(reason, "why"));
        const URL: &str = "http://models";
        const FAR: [u8; 4] = [93, 184, 216, 34];
        const NEAR: [u8; 4] = [10, 0, 0, 1];

        // A name that cannot be looked up for a while, and a server that comes up.
        let external = desired(Some(URL), true);
        let far = known(&external, FAR);
        assert!(external.keeps(&far, &not("Unreachable")) && external.keeps(&far, &not(STARTING_UP)));
        // The leave is taken away, which concerns servers that are far.
        let internal = desired(Some(URL), false);
        assert!(!internal.keeps(&far, &not(STARTING_UP)));
        let near = known(&internal, NEAR);
        assert!(internal.keeps(&near, &not(STARTING_UP)));
        // The name leads far away by now.
        assert!(!internal.keeps(&near, &not(EXTERNAL)));
        // Another URL: one that cannot be used, is not looked up yet, or is the node's own server at another port.
        for url in [Some("https://models"), Some("nonsense"), Some("http://others"), None] {
            let other = desired(url, true);
            assert!(!other.keeps(&near, &not(INVALID)) && !other.keeps(&near, &not(STARTING_UP)), "{url:?}");
        }
        // The same URL with another authority is another server.
        let mut trusted = internal.clone();
        trusted.backend.ca_file = Some("/ca.pem".to_owned());
        assert!(!trusted.keeps(&near, &not(STARTING_UP)));
        let own = desired(None, false);
        let local = known(&own, [127, 0, 0, 1]);
        assert!(own.keeps(&local, &not("PullingImage")));
        let mut moved = own.clone();
        moved.backend.port = Some(1);
        assert!(!moved.keeps(&local, &not(STARTING_UP)));
    }
}
