//! A connection to the API, for one exchange: a head and a body up, a head and a body down (RFC 9112).
//! It is strict: an answer that can be read in two ways is an error, and what was not read to its end is not used again.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pingora::protocols::Stream;
use pingora::time::timeout;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bound on one head of an answer, in bytes.
const MOST_HEAD_BYTES: usize = 64 * 1024;

/// Fields of one head.
const MOST_FIELDS: usize = 256;

/// Interim heads before the final one.
const MOST_INTERIM: usize = 16;

/// Bound on the line before a chunk, and on all the fields behind the last one, in bytes.
const MOST_CHUNK_LINE: usize = 4 * 1024;

/// What is read at once: most answers, as a whole.
const PIECE: usize = 4 * 1024;

/// What of a longer body is read at once.
const LARGE_PIECE: usize = 32 * 1024;

/// A connection to the API.
pub(super) struct Line {
    stream: Stream,
    /// Whether it was used before, and so may turn out to be closed.
    pub(super) reused: bool,
    pub(super) address: SocketAddr,
    /// How long to wait for the next piece of an answer.
    pub(super) read_timeout: Duration,
    write_timeout: Duration,
    /// What came and was not taken yet.
    buffer: BytesMut,
    body: Body,
    answered: bool,
    /// Heads that came.
    heads: usize,
    stays: bool,
}

/// Why an exchange cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFault {
    /// The connection was closed before anything of an answer came.
    Closed,
    /// It broke in the midst of an answer.
    Broken,
    /// The other side takes too long.
    TimedOut,
    /// It says what is no answer.
    Nonsense(&'static str),
}

/// How an answer's body goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// No answer has begun.
    Unknown,
    Length(u64),
    Chunked(Chunk),
    UntilClose,
    Done,
}

/// What of a chunked body comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Size,
    Bytes(u64),
    /// The end of the line behind a chunk.
    End,
    /// Fields behind the last chunk, of which so many bytes came.
    Trailer(usize),
}

/// The next step of a body.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Piece(Bytes),
    /// It is over.
    Over,
    /// More has to be read first.
    Starved,
}

impl Line {
    pub(super) fn new(stream: Stream, reused: bool, address: SocketAddr, read: Duration, write: Duration) -> Self {
        Self {
            stream,
            reused,
            address,
            read_timeout: read,
            write_timeout: write,
            buffer: BytesMut::new(),
            body: Body::Unknown,
            answered: false,
            heads: 0,
            stays: true,
        }
    }

    /// Sends `pieces`, one after the other, and no byte less.
    pub(super) async fn send(&mut self, pieces: &[&[u8]]) -> Result<(), LineFault> {
        let stream = &mut self.stream;
        let sent = async {
            for piece in pieces {
                stream.write_all(piece).await?;
            }
            stream.flush().await
        };
        let fault = match timeout(self.write_timeout, sent).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(_)) => self.gone(),
            Err(_) => LineFault::TimedOut,
        };
        self.stays = false;
        Err(fault)
    }

    /// Reads the next head: an interim one, or the final one, whose body then follows. Nothing is lost when the wait for it
    /// is given up.
    pub(super) async fn read_head(&mut self, asked_with: &Method) -> Result<ApiHead, LineFault> {
        loop {
            if let Some(head) = ApiHead::take(&mut self.buffer)? {
                self.body = head.body(asked_with)?;
                self.heads += 1;
                if self.heads > MOST_INTERIM {
                    return Err(LineFault::Nonsense("interim heads without end"));
                }
                self.stays &= head.lets_stay() && self.body != Body::UntilClose;
                return Ok(head);
            }
            if self.buffer.len() > MOST_HEAD_BYTES {
                return Err(LineFault::Nonsense("its head is too large"));
            }
            if self.fill(PIECE).await? == 0 {
                return Err(self.gone());
            }
        }
    }

    /// The next piece of the body; none behind the last. Nothing is lost when the wait for it is given up.
    pub(super) async fn read_body(&mut self) -> Result<Option<Bytes>, LineFault> {
        loop {
            match self.body.step(&mut self.buffer)? {
                Step::Piece(piece) => return Ok(Some(piece)),
                Step::Over => return Ok(None),
                Step::Starved => {}
            }
            let room = match self.body {
                Body::Length(left) => usize::try_from(left).unwrap_or(LARGE_PIECE).clamp(PIECE, LARGE_PIECE),
                _ => LARGE_PIECE,
            };
            if self.fill(room).await? == 0 {
                if self.body != Body::UntilClose {
                    return Err(LineFault::Broken);
                }
                self.body = Body::Done;
            }
        }
    }

    /// Whether nothing of the body is left.
    pub(super) const fn is_body_done(&self) -> bool {
        matches!(self.body, Body::Done | Body::Length(0))
    }

    /// The connection, if it can serve another exchange.
    pub(super) fn into_idle(self) -> Option<(Stream, SocketAddr)> {
        let stays = self.stays && self.is_body_done() && self.buffer.is_empty();
        stays.then_some((self.stream, self.address))
    }

    /// Ends what is said in both directions.
    pub(super) async fn shut(&mut self) {
        // It is closed either way.
        let _ = timeout(self.write_timeout, self.stream.shutdown()).await;
    }

    /// Reads what there is, into `room` at least; 0 is the end.
    async fn fill(&mut self, room: usize) -> Result<usize, LineFault> {
        if self.buffer.capacity() - self.buffer.len() < PIECE / 2 {
            self.buffer.reserve(room);
        }
        match timeout(self.read_timeout, self.stream.read_buf(&mut self.buffer)).await {
            Ok(Ok(count)) => {
                self.answered |= count > 0;
                Ok(count)
            }
            Ok(Err(_)) => Err(self.gone()),
            Err(_) => Err(LineFault::TimedOut),
        }
    }

    const fn gone(&self) -> LineFault {
        if self.answered { LineFault::Broken } else { LineFault::Closed }
    }
}

impl Body {
    /// Takes what `buffer` has of it.
    fn step(&mut self, buffer: &mut BytesMut) -> Result<Step, LineFault> {
        loop {
            match self {
                Self::Done | Self::Length(0) => return Ok(Step::Over),
                Self::Unknown => return Err(LineFault::Nonsense("a body without a head")),
                _ if buffer.is_empty() => return Ok(Step::Starved),
                Self::UntilClose => return Ok(Step::Piece(buffer.split().freeze())),
                Self::Length(left) => return Ok(Step::Piece(cut(buffer, left))),
                Self::Chunked(chunk) => match chunk {
                    Chunk::Bytes(0) => *chunk = Chunk::End,
                    Chunk::Bytes(left) => return Ok(Step::Piece(cut(buffer, left))),
                    Chunk::Size if !buffer[0].is_ascii_hexdigit() => {
                        return Err(LineFault::Nonsense("a chunk without a size"));
                    }
                    Chunk::Size => match httparse::parse_chunk_size(buffer) {
                        Ok(httparse::Status::Complete((length, size))) if has_whole_lines(&buffer[..length]) => {
                            buffer.advance(length);
                            *chunk = if size == 0 { Chunk::Trailer(0) } else { Chunk::Bytes(size) };
                        }
                        Ok(httparse::Status::Partial) if buffer.len() < MOST_CHUNK_LINE => return Ok(Step::Starved),
                        _ => return Err(LineFault::Nonsense("a chunk without a size")),
                    },
                    Chunk::End => match &buffer[..] {
                        [b'\r', b'\n', ..] => {
                            buffer.advance(2);
                            *chunk = Chunk::Size;
                        }
                        [b'\r'] => return Ok(Step::Starved),
                        _ => return Err(LineFault::Nonsense("a chunk longer than its size")),
                    },
                    Chunk::Trailer(before) => match memchr::memchr(b'\n', buffer) {
                        None if *before + buffer.len() < MOST_CHUNK_LINE => return Ok(Step::Starved),
                        Some(at) if *before + at < MOST_CHUNK_LINE && has_whole_lines(&buffer[..=at]) => {
                            *before += at + 1;
                            buffer.advance(at + 1);
                            if at == 1 {
                                *self = Self::Done;
                            }
                        }
                        _ => return Err(LineFault::Nonsense("what is behind its body is no field, or has no end")),
                    },
                },
            }
        }
    }
}

/// As much of `left` bytes as `buffer` has.
fn cut(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= length as u64;
    buffer.split_to(length).freeze()
}

/// The head of an answer, as it came.
pub(super) struct ApiHead {
    pub(super) status: StatusCode,
    raw: Bytes,
    fields: Vec<Field>,
    /// Whether it is of HTTP/1.1, whose connections stay by themselves.
    is_current: bool,
}

/// Where a field stands in the head: the first byte of its name and of its value, and the ends of both.
struct Field {
    name: (u32, u32),
    value: (u32, u32),
}

impl ApiHead {
    /// Takes a head off `buffer`; none while it is not there as a whole.
    pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Self>, LineFault> {
        if buffer.is_empty() {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(LineFault::Nonsense("its head cannot be parsed")),
        };
        if !has_whole_lines(&buffer[..length]) {
            return Err(LineFault::Nonsense("a line of its head ends without a carriage return"));
        }
        let start = buffer.as_ptr() as usize;
        let place = |part: &[u8]| {
            let from = part.as_ptr() as usize - start;
            (from as u32, (from + part.len()) as u32)
        };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(LineFault::Nonsense("its status is none"))?;
        let is_current = response.version == Some(1);
        let fields: Vec<Field> = response
            .headers
            .iter()
            .map(|field| Field { name: place(field.name.as_bytes()), value: place(field.value) })
            .collect();
        Ok(Some(Self { status, raw: buffer.split_to(length).freeze(), fields, is_current }))
    }

    /// The values of `name`, in their order.
    pub(super) fn values<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h [u8]> {
        let named = move |field: &&Field| self.text(field.name).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(named).map(|field| self.text(field.value))
    }

    /// All fields, in their order; none in the place of one that is no field.
    pub(super) fn fields(&self) -> impl Iterator<Item = Option<(HeaderName, HeaderValue)>> {
        self.fields.iter().map(|field| {
            let name = HeaderName::from_bytes(self.text(field.name)).ok()?;
            let value = self.raw.slice(field.value.0 as usize..field.value.1 as usize);
            Some((name, HeaderValue::from_maybe_shared(value).ok()?))
        })
    }

    pub(super) const fn field_count(&self) -> usize {
        self.fields.len()
    }

    /// Whether the connection may carry another exchange.
    fn lets_stay(&self) -> bool {
        self.is_current && !self.values("connection").any(|value| names(value, b"close"))
    }

    /// How the body behind it ends (RFC 9112, section 6.3).
    fn body(&self, asked_with: &Method) -> Result<Body, LineFault> {
        match self.status.as_u16() {
            101 => return Ok(Body::UntilClose),
            100..=199 => return Ok(Body::Unknown),
            204 | 304 => return Ok(Body::Done),
            _ if *asked_with == Method::HEAD => return Ok(Body::Done),
            _ => {}
        }
        let (mut lengths, mut codings) = (self.values("content-length"), self.values("transfer-encoding"));
        match (lengths.next(), codings.next()) {
            (None, None) => Ok(Body::UntilClose),
            (Some(length), None) if lengths.next().is_none() => Ok(Body::Length(digits(length)?)),
            (None, Some(coding)) if codings.next().is_none() && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Body::Chunked(Chunk::Size))
            }
            _ => Err(LineFault::Nonsense("its body is framed in more than one way")),
        }
    }

    fn text(&self, (from, to): (u32, u32)) -> &[u8] {
        &self.raw[from as usize..to as usize]
    }
}

fn digits(value: &[u8]) -> Result<u64, LineFault> {
    let number = || str::from_utf8(value).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
    number().ok_or(LineFault::Nonsense("its length is no number"))
}

/// Whether every line ends with a carriage return before its line feed.
pub(super) fn has_whole_lines(lines: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', lines).all(|at| at > 0 && lines[at - 1] == b'\r')
}

fn names(list: &[u8], name: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use pingora::protocols::l4::stream::Stream as L4Stream;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    impl ApiHead {
        /// The head that is written so.
        pub(in crate::edge) fn of(text: &str) -> Self {
            Self::take(&mut BytesMut::from(text)).unwrap().unwrap()
        }
    }

    /// The API's end of a connection, and the line over the other.
    async fn line() -> (TcpStream, Line) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let near = TcpStream::connect(address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let patience = Duration::from_secs(5);
        (far, Line::new(Box::new(L4Stream::from(near)), true, address, patience, patience))
    }

    /// What of `answer`, told in pieces of `size` bytes, is understood: status and body, and whether the line may stay.
    async fn understood(answer: &str, method: Method, size: usize) -> Result<(u16, String, bool), LineFault> {
        let (mut far, mut line) = line().await;
        let tell = async {
            for piece in answer.as_bytes().chunks(size) {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            far.shutdown().await.unwrap();
        };
        let hear = async {
            let head = loop {
                let head = line.read_head(&method).await?;
                if !head.status.is_informational() {
                    break head;
                }
            };
            let mut body = Vec::new();
            while let Some(piece) = line.read_body().await? {
                body.extend_from_slice(&piece);
            }
            Ok((head.status.as_u16(), String::from_utf8(body).unwrap()))
        };
        let ((), heard) = tokio::join!(tell, hear);
        heard.map(|(status, body)| (status, body, line.into_idle().is_some()))
    }

    #[tokio::test]
    async fn an_answer_is_understood_in_whatever_pieces_it_comes() {
        const CASES: [(&str, Method, u16, &str, bool); 10] = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Method::GET, 200, "hello", true),
            ("HTTP/1.1 200 \r\nA:\r\nB: \r\nContent-Length:  5 \r\nC:\r\n\r\nhello", Method::GET, 200, "hello", true),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n\r\nhello",
                Method::GET,
                200,
                "hello",
                false,
            ),
            ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Method::GET, 200, "hello", false),
            ("HTTP/1.1 200 OK\r\n\r\nhello", Method::GET, 200, "hello", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Method::HEAD, 200, "", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", Method::DELETE, 204, "", true),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Method::GET, 304, "", true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n02\r\nlo\r\n0\r\nA: b\r\n\r\n",
                Method::GET,
                200,
                "hello",
                true,
            ),
            (
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok",
                Method::POST,
                201,
                "ok",
                true,
            ),
        ];
        for (answer, method, status, body, stays) in CASES {
            for size in [1, 7, 4096] {
                let heard = understood(answer, method.clone(), size).await;
                assert_eq!(heard, Ok((status, body.to_owned(), stays)), "{answer:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn every_field_of_a_head_is_found_where_it_stands() {
        let head = ApiHead::of("HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nEmpty:\r\nset-cookie:  b=2 \r\n\r\n");
        let fields: Vec<_> = head.fields().map(Option::unwrap).collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(fields, [("set-cookie", "a=1"), ("empty", ""), ("set-cookie", "b=2")]);
        assert_eq!(head.values("SET-COOKIE").collect::<Vec<_>>(), [b"a=1", b"b=2"]);
    }

    #[tokio::test]
    async fn a_line_with_more_on_it_than_the_answer_is_not_used_again() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(understood(answer, Method::GET, 4096).await, Ok((200, "ok".to_owned(), false)));
    }

    #[tokio::test]
    async fn an_answer_that_can_be_read_in_two_ways_is_none() {
        for fields in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "A: b\r\n c\r\n",
        ] {
            let heard = understood(&format!("HTTP/1.1 200 OK\r\n{fields}\r\nhello"), Method::GET, 4096).await;
            assert!(matches!(heard, Err(LineFault::Nonsense(_))), "{fields:?}: {heard:?}");
        }
    }

    #[tokio::test]
    async fn chunks_that_are_none_and_what_has_no_end_are_refused() {
        let endless = format!("5{}", ";x".repeat(MOST_CHUNK_LINE));
        let trailer = format!("0\r\n{}", "A: b\r\n".repeat(MOST_CHUNK_LINE));
        let hints = format!("HTTP/1.1 {}", "103 Early Hints\r\n\r\nHTTP/1.1 ".repeat(2 * MOST_INTERIM));
        assert!(matches!(understood(&hints, Method::GET, 4096).await, Err(LineFault::Nonsense(_))));
        assert!(matches!(understood("HTTP/1.1 200 OK\nA: b\n\n", Method::GET, 9).await, Err(LineFault::Nonsense(_))));
        let feeds = format!("0\r\n{}", "\n".repeat(MOST_CHUNK_LINE));
        for body in [
            "5\r\nhello\r\n\r\n\r\n",
            "5\r\nhello\r\n;x\r\n\r\n",
            "5;\nx\r\nhello\r\n0\r\n\r\n",
            &feeds,
            "x\r\nhello",
            "5\nhello\r\n0\r\n\r\n",
            "3\r\nhello\r\n0\r\n\r\n",
            "11111111111111111\r\n",
            &endless,
            &trailer,
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
            let heard = understood(&answer, Method::GET, 1024).await;
            assert!(matches!(heard, Err(LineFault::Nonsense(_))), "{:?}: {heard:?}", &body[..body.len().min(20)]);
        }
        let head = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(2 * MOST_HEAD_BYTES));
        assert!(matches!(understood(&head, Method::GET, 4096).await, Err(LineFault::Nonsense(_))));
        let fields = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS + 1));
        assert!(matches!(understood(&fields, Method::GET, 4096).await, Err(LineFault::Nonsense(_))));
    }

    #[tokio::test]
    async fn what_breaks_off_before_an_answer_is_told_from_what_breaks_in_its_midst() {
        assert_eq!(understood("", Method::GET, 1).await, Err(LineFault::Closed));
        for answer in
            ["HTTP/1.1 2", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"]
        {
            assert_eq!(understood(answer, Method::GET, 4096).await, Err(LineFault::Broken), "{answer}");
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        assert_eq!(understood(chunked, Method::GET, 4096).await, Err(LineFault::Broken));
    }

    #[tokio::test]
    async fn who_gives_a_wait_up_loses_nothing() {
        let (mut far, mut line) = line().await;
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let (mut status, mut body) = (None, Vec::new());
        let mut bytes = answer.as_bytes().iter();
        loop {
            if status.is_none() {
                status = tokio::select! { biased; head = line.read_head(&Method::GET) => Some(head.unwrap().status), () = tokio::task::yield_now() => None };
            } else {
                let read = tokio::select! { biased; read = line.read_body() => Some(read.unwrap()), () = tokio::task::yield_now() => None };
                match read {
                    Some(Some(piece)) => body.extend_from_slice(&piece),
                    Some(None) => break,
                    None => {}
                }
            }
            if let Some(byte) = bytes.next() {
                far.write_all(&[*byte]).await.unwrap();
            }
        }
        assert_eq!((status, &body[..]), (Some(StatusCode::OK), &b"hello"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_says_nothing_is_not_waited_for_without_end() {
        let (_far, mut line) = line().await;
        line.read_timeout = Duration::from_millis(50);
        assert_eq!(line.read_head(&Method::GET).await.err(), Some(LineFault::TimedOut));
    }
}
