package io.gateway.client;

import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.security.SecureRandom;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.SSLSocketFactory;

/** Says how tunnels are opened and resumed. It must not change while one is open. */
public final class Dialer {
    /** Asks your login server for a new line, where one may help; null: there is none. */
    public interface NewLine {
        String get(GatewayException error) throws IOException;
    }

    /** Connects to a gateway, in so many milliseconds. */
    public interface Connect {
        Socket connect(String gateway, int timeout) throws IOException;
    }

    public enum Event { RECONNECTING, BACK, FAILED, ENDED }

    /** Told what becomes of a tunnel. */
    public interface Listener {
        void onEvent(Event event, Exception why);
    }

    final String[] gateways;
    public NewLine newLine;
    /** Asks for no more than a plain tunnel. */
    public boolean plain;
    /** Milliseconds for one gateway to be reached and to answer. */
    public int timeout = 5000;
    /** Milliseconds for which a lost tunnel is tried to be resumed. */
    public int hold = 30000;
    /** Milliseconds after which a silent gateway is asked whether it is there, and has to answer. */
    public int silence = 5000, patience = 3000;
    public Listener onEvent;
    /** What onEvent was called at first. */
    @Deprecated public Listener listener;
    public Connect connect = this::connectTcp;
    /** Makes the sockets of tls://; the system's unless given: for an authority of your own. */
    public SSLSocketFactory tls;

    /** Gateways are host:port or tls://host:port, and tried in turn. */
    public Dialer(String... gateways) {
        if (gateways.length == 0) throw new IllegalArgumentException("no gateway to dial");
        this.gateways = gateways.clone();
    }

    /** Opens a tunnel to the game server whose sealed line, or token, is given. */
    public Tunnel dial(String line) throws IOException {
        for (boolean again = true; ; again = false) {
            GatewayException error = null;
            for (int at = 0; at < gateways.length; at++) {
                try {
                    return open(at, line.trim());
                } catch (GatewayException e) {
                    error = e;
                    if (e instanceof GatewayException.Unauthorized) break; // the next gateway would say the same
                }
            }
            line = again && newLine != null && error.status != 0 ? newLine.get(error) : null;
            if (line == null) throw error;
        }
    }

    private Tunnel open(int at, String line) throws GatewayException {
        if (!plain) {
            byte[] secret = new byte[32];
            new SecureRandom().nextBytes(secret);
            Session session = new Session(secret);
            try {
                Socket s = ask(at, Session.ascii(Session.openLine(session.publicKey, line)), session);
                return new Tunnel(this, at, s, session);
            } catch (GatewayException.BadRequest | GatewayException.Unauthorized e) {
                // What knows of no sessions calls them a bad address.
            }
        }
        return new Tunnel(this, at, ask(at, Session.ascii(line + "\n"), null), null);
    }

    /** Sends a request and waits for 200; with a session that begins, for its HELLO too. */
    Socket ask(int at, byte[] request, Session hello) throws GatewayException {
        return ask(at, request, hello, timeout, s -> { });
    }

    /** What becomes of a connection that is asked; Android has no Consumer before version 24. */
    interface Connected {
        void with(Socket s);
    }

    Socket ask(int at, byte[] request, Session hello, int timeout, Connected known) throws GatewayException {
        long deadline = System.nanoTime() + timeout * 1000000L;
        Socket s = null;
        Watch late = null;
        boolean done = false;
        try {
            Socket connected = s = connect.connect(gateways[at], timeout);
            // Reading has a time-out of its own, writing has none.
            known.with(s);
            late = Watch.after((deadline - System.nanoTime()) / 1000000, () -> cut(connected));
            s.getOutputStream().write(request);
            byte[] buffer = new byte[4096];
            for (int n = 0; n < 3; ) { // a fourth byte would be the game server's
                n += read(s, buffer, n, 3 - n, deadline);
            }
            String status = new String(buffer, 0, 3, java.nio.charset.StandardCharsets.ISO_8859_1);
            if (!status.equals("200")) throw GatewayException.of(status);
            while (hello != null && hello.key == null) {
                hello.input(buffer, 0, read(s, buffer, 0, buffer.length, deadline));
            }
            s.setSoTimeout(0);
            done = late.cancel(); // else it is being cut
            if (!done) throw new java.net.SocketTimeoutException();
            return s;
        } catch (GatewayException e) {
            throw e;
        } catch (java.net.SocketTimeoutException e) {
            throw new GatewayException.NoAnswer("the gateway did not answer in time: connect again");
        } catch (IOException | Session.Violation e) {
            throw new GatewayException.NoAnswer(gateways[at] + ": " + e.getMessage() + ": connect again");
        } finally {
            if (late != null) late.cancel();
            if (!done && s != null) cut(s);
        }
    }

    private static int read(Socket s, byte[] buffer, int offset, int count, long deadline) throws IOException {
        s.setSoTimeout((int) Math.max(1, (deadline - System.nanoTime()) / 1000000));
        int n = s.getInputStream().read(buffer, offset, count);
        if (n < 0) throw new GatewayException.NoAnswer("the gateway closed without a status: connect again");
        return n;
    }

    static void close(Socket s) {
        try {
            s.close();
        } catch (IOException e) {
            // It is given up.
        }
    }

    /** Closes a connection whose last bytes still arrive. It does not wait either. */
    static void leave(Socket s) {
        if (!(s instanceof SSLSocket)) {
            close(s);
            return;
        }
        Thread closing = new Thread(() -> close(s), "gateway-leave");
        closing.setDaemon(true);
        closing.start();
        Watch.after(1000, () -> cut(s));
    }

    /** Closes a connection that is given up. It does not wait, and who writes or reads does no longer. */
    static void cut(Socket s) {
        if (!(s instanceof SSLSocket)) {
            close(s);
            return;
        }
        // TLS has last words, for which it waits for who writes; without a time to linger.
        Thread closing = new Thread(() -> {
            try {
                s.setSoLinger(true, 0);
            } catch (IOException e) {
                // It is closed.
            }
            close(s);
        }, "gateway-cut");
        closing.setDaemon(true);
        closing.start();
    }

    private Socket connectTcp(String gateway, int timeout) throws IOException {
        boolean secured = gateway.startsWith("tls://");
        String address = secured ? gateway.substring(6) : gateway;
        int colon = address.lastIndexOf(':');
        if (colon < 0) throw new IOException("no host:port");
        String host = address.substring(0, colon).replace("[", "").replace("]", "");
        int port = Integer.parseInt(address.substring(colon + 1));
        Socket s = new Socket();
        Watch late = null;
        try {
            s.connect(new InetSocketAddress(host, port), timeout);
            s.setTcpNoDelay(true);
            if (!secured) return s;
            s.setSoTimeout(timeout);
            late = Watch.after(timeout, () -> close(s));
            SSLSocket secure = (SSLSocket) (tls != null ? tls : (SSLSocketFactory) SSLSocketFactory.getDefault()).createSocket(s, host, port, true);
            SSLParameters parameters = secure.getSSLParameters();
            parameters.setEndpointIdentificationAlgorithm("HTTPS"); // else the name is not checked
            secure.setSSLParameters(parameters);
            secure.startHandshake();
            return secure;
        } catch (IOException | RuntimeException e) {
            close(s);
            throw e;
        } finally {
            if (late != null) late.cancel();
        }
    }

    void tell(Event event, Exception why) {
        Listener told = onEvent != null ? onEvent : listener;
        if (told != null) told.onEvent(event, why);
    }
}
