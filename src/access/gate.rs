//! Finds the list entry that decides about a request, answers banned clients and informs observers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use tokio::time::Instant;

use super::exempt;
use crate::extract::{ClientIp, KeyExtractor, RequestHead, TrustedHeader};
use crate::key::IpNet;
use crate::limits::{Limits, Listed, Listing, listed_address, listed_key};
use crate::observe::{DecidedMark, Observer, Observers, Subject};
use crate::rejection::{Reason, Rejection};
use crate::respond::{Answers, Responder};

/// The lists, and how to look up requests on them.
#[derive(Clone)]
pub struct Gate {
    /// The lists that change at run time, and those of a file, if any.
    pub lists: Vec<Limits>,
    client_ip: ClientIp,
    /// The keys of a request that are looked up.
    pub keys: Vec<Arc<dyn KeyExtractor>>,
    /// The header that exempts requests.
    pub allow_header: Option<Arc<AllowHeader>>,
    /// The name in answers, metrics and logs.
    pub name: Arc<str>,
    pub(crate) answers: Answers,
    pub(crate) observers: Observers,
}

/// A header and the value of it that exempts a request.
pub struct AllowHeader {
    header: TrustedHeader,
    value: Box<str>,
    has_warned: AtomicBool,
}

/// The result of looking up a request.
enum ListMatch {
    Banned(Listed),
    /// Exempt because of this entry, or because of a header.
    Exempt(Option<Listed>),
}

impl Gate {
    /// A gate that looks up the client address on these lists.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            lists: vec![limits.clone()],
            client_ip: ClientIp::peer(),
            keys: Vec::new(),
            allow_header: None,
            name: "".into(),
            answers: Answers::default(),
            observers: Observers::default(),
        }
    }

    /// Records that requests are looked up on these lists.
    pub fn apply(&self) {
        for list in &self.lists {
            list.apply_lists(!self.keys.is_empty());
        }
    }

    /// As [`apply`](Self::apply), for a gate that replaces `before` in a reload. Does nothing if
    /// `before` was not applied.
    pub fn replace(&self, before: &Self) {
        if !before.lists.iter().any(Limits::are_lists_applied) {
            return;
        }
        self.apply();
        let is_gone = |list: &&Limits| !self.lists.iter().any(|kept| kept.is(list));
        before
            .lists
            .iter()
            .filter(is_gone)
            .for_each(Limits::apply_no_lists);
    }

    /// Reports to observers that the lists are in force.
    pub fn tell_attached(&self) {
        self.observers.attached("access", &self.name, [""]);
    }

    /// Whether all lists are empty.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.allow_header.is_none() && self.lists.iter().all(Limits::has_no_lists)
    }

    /// Decides about a request and informs observers. Marks an exempt request for the inner layers,
    /// and returns the response for a banned client.
    #[must_use = "a response means that the request is rejected"]
    pub fn check<B>(&self, request: &mut Request<B>) -> Option<Response<Bytes>> {
        let begun = self.observers.begin();
        match self.find(RequestHead::from(&*request))? {
            ListMatch::Banned(listed) => {
                Some(self.ban(&listed, RequestHead::from(&*request), begun))
            }
            ListMatch::Exempt(listed) => {
                self.exempt(listed.as_ref(), request, begun);
                None
            }
        }
    }

    #[cold]
    fn ban(
        &self,
        listed: &Listed,
        head: RequestHead<'_>,
        begun: Option<Instant>,
    ) -> Response<Bytes> {
        let rejection = Rejection::new(Reason::Banned, String::from(&*self.name))
            .with_retry_after(listed.ends_in);
        let took = begun.map(|begun| begun.elapsed());
        let response = self.answers.answer(&rejection, head);
        if let Some(took) = took {
            let mut subject = self.subject(Some(listed), head);
            subject.status = Some(response.status().as_u16());
            (self.observers).decided_in(took, &subject, |observer| {
                observer.rejected(&subject, &rejection);
            });
        }
        response
    }

    fn exempt<B>(&self, listed: Option<&Listed>, request: &mut Request<B>, begun: Option<Instant>) {
        // Of two nested layers, the outer one has already reported the exemption.
        if exempt::is_exempt(request.extensions()) {
            return;
        }
        let subject = self.subject(listed, RequestHead::from(&*request));
        self.observers
            .decided(begun, &subject, |observer| observer.exempted(&subject));
        if self.observers.mark_requests() {
            request.extensions_mut().insert(DecidedMark);
        }
        exempt::mark(request.extensions_mut());
    }

    fn find(&self, head: RequestHead<'_>) -> Option<ListMatch> {
        let of_key = self.find_key(head);
        if of_key.is_some() {
            return of_key;
        }
        let address = self.client_ip.address(head);
        let of_address = address.and_then(|ip| listed_address(&self.lists, IpNet::from(ip)));
        let of_header = || {
            self.allow_header
                .as_ref()?
                .allows(head)
                .then_some(ListMatch::Exempt(None))
        };
        of_address.map(ListMatch::from).or_else(of_header)
    }

    /// The entry of the request's key. If there are several, a denied one takes precedence.
    fn find_key(&self, head: RequestHead<'_>) -> Option<ListMatch> {
        if !self.lists.iter().any(Limits::lists_keys) {
            return None;
        }
        // Addresses are looked up separately, with all networks that contain them.
        let keys = self.keys.iter();
        let keys = keys
            .filter_map(|key| key.extract(head).key())
            .filter(|key| !key.is_ip());
        listed_key(&self.lists, keys).map(ListMatch::from)
    }

    fn subject<'a>(&'a self, listed: Option<&'a Listed>, head: RequestHead<'a>) -> Subject<'a> {
        let key = listed.map(|listed| &listed.key);
        Subject::new("access", &self.name, "", key).of(head, &self.observers)
    }

    /// Sets how to find the client address, for the lists and for observers.
    pub fn set_client_ip(&mut self, client_ip: ClientIp) {
        self.observers.set_client_ip(client_ip.clone());
        self.client_ip = client_ip;
    }

    /// Sets how banned clients are answered. Default: [`Negotiated`](crate::respond::Negotiated).
    pub fn set_responder(&mut self, responder: impl Responder) {
        self.answers.set_responder(responder);
    }

    /// Adds an observer.
    pub fn observe(&mut self, observer: impl Observer) {
        self.observers.add(observer);
    }
}

impl From<Listed> for ListMatch {
    fn from(listed: Listed) -> Self {
        match listed.listing {
            Listing::Denied => Self::Banned(listed),
            Listing::Exempt => Self::Exempt(Some(listed)),
        }
    }
}

impl AllowHeader {
    /// Requests with this value in the header are exempt.
    #[must_use]
    pub fn new(header: TrustedHeader, value: &str) -> Self {
        Self {
            header,
            value: value.trim().into(),
            has_warned: AtomicBool::new(false),
        }
    }

    fn allows(&self, head: RequestHead<'_>) -> bool {
        if let Some(key) = self.header.extract(head).key() {
            // Fingerprints are compared, so that the duration reveals nothing about the value.
            return key == self.header.key_of(&self.value);
        }
        if self.header.is_forged(head) && !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                header = %self.header.name(),
                "a request has the header that exempts from limits, but its peer is not a trusted proxy: the header is \
                 ignored. This is logged once"
            );
        }
        false
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("lists", &self.lists)
            .field("client_ip", &self.client_ip)
            .finish_non_exhaustive()
    }
}

// The value may be a secret.
impl fmt::Debug for AllowHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AllowHeader")
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}
