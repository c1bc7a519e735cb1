//! What sandboxes are made from, as the spawner keeps it and gives it to the supervisors that it forks: the template, and
//! networks that units have given back.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::handout;
use crate::network::Network;
use crate::plan::{Base, Step};
use crate::template::Template;

/// Networks that are kept. More are of use only where more units end at once than begin after it.
const KEPT: usize = 8;

/// What the spawner has.
pub(crate) struct Store {
    template: Option<Template>,
    /// Steps of which none could be made: that is not tried for each spare again.
    failed: Option<Vec<Step>>,
    /// Whether this process yields to others while nothing is to be done for a unit.
    yields: bool,
    networks: Vec<OwnedFd>,
    /// Where they come back; `None` in a supervisor.
    returned: Option<OwnedFd>,
    /// The other end, which is for supervisors.
    back: Option<OwnedFd>,
}

/// What a supervisor has of it.
pub(crate) struct Stock {
    /// What the sandbox begins with.
    pub(crate) template: Option<Template>,
    /// Whether this process yields to others until it has a unit.
    pub(crate) yields: bool,
    lent: Option<OwnedFd>,
    /// Where networks are given back.
    back: Option<OwnedFd>,
}

impl Store {
    pub(crate) fn new(yields: bool) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (returned, back) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self {
            template: None,
            failed: None,
            yields,
            networks: Vec::new(),
            returned: Some(returned),
            back: Some(back),
        })
    }

    /// Waits for a message on `socket`, or its end; until then takes networks that are given back.
    pub(crate) fn await_message(&mut self, socket: &OwnedFd) {
        let Some(returned) = &self.returned else { return };
        loop {
            let mut polled = [PollFd::new(socket, PollFlags::IN), PollFd::new(returned, PollFlags::IN)];
            // If it fails, receiving tells why.
            let failed = rustix::event::poll(&mut polled, None).is_err_and(|errno| errno != Errno::INTR);
            let [asked, given] = polled.map(|line| !line.revents().is_empty());
            let mut byte = [0];
            if given
                && let Ok((_, Some(network))) = handout::receive(returned, &mut byte, RecvFlags::DONTWAIT)
                && self.networks.len() < KEPT
            {
                self.networks.push(network);
            }
            if asked || failed {
                return;
            }
        }
    }

    /// Makes the template of a base if it is not the one that there is, or is to be made anew.
    pub(crate) fn prepare_template(&mut self, base: &Base, anew: bool) {
        let Some(steps) = base.template() else { return };
        let known = self.template.as_ref().is_some_and(|template| template.is_of(base))
            || self.failed.as_deref() == Some(steps);
        if known && !anew {
            return;
        }
        match Template::make(steps) {
            Ok(template) => (self.template, self.failed) = (Some(template), None),
            Err(errno) => {
                // Each sandbox carries out the steps for itself. Standard error is the agent's, and may be closed.
                let _closed = writeln!(
                    io::stderr(),
                    "what sandboxes begin with cannot be made once for all, so each makes it for itself: {errno}"
                );
                (self.template, self.failed) = (None, Some(steps.to_vec()));
            }
        }
    }

    /// A network for the supervisor that is forked next, and for no other.
    pub(crate) fn lend(&mut self) -> Option<OwnedFd> {
        self.networks.pop()
    }

    /// In the process that was just forked: its part of the spawner's copy.
    pub(crate) fn stock(&mut self, lent: Option<OwnedFd>) -> Stock {
        self.networks.clear();
        self.returned = None;
        Stock { template: self.template.take(), yields: self.yields, lent, back: self.back.take() }
    }
}

impl Stock {
    /// Brings this process into a network for its unit.
    pub(crate) fn network(&mut self) -> Result<Network, Errno> {
        let back = self.back.as_ref().map(|back| rustix::io::fcntl_dupfd_cloexec(back, 0)).transpose()?;
        Network::enter(self.lent.take(), back)
    }

    /// Gives a network back that is not needed.
    pub(crate) fn decline_network(&mut self) {
        if let (Some(network), Some(back)) = (self.lent.take(), &self.back) {
            // As with one that was used.
            let _gone = handout::send(back, b"N", network.as_fd());
        }
    }

    /// Takes the network of a sandbox that had no unit.
    pub(crate) fn take_back(&mut self, network: Option<Network>) {
        self.lent = network.map(Network::into_namespace);
    }
}
