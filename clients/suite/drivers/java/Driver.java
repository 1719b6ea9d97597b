package io.gateway.client;

import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicInteger;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocketFactory;
import javax.net.ssl.TrustManagerFactory;

/** Driver MODE GATEWAYS LINES MILLISECONDS TEXT; see ../../suite_test.go. */
final class Driver {
    static byte[] bytes(String hex) {
        byte[] b = new byte[hex.length() / 2];
        for (int i = 0; i < b.length; i++) b[i] = (byte) Integer.parseInt(hex.substring(2 * i, 2 * i + 2), 16);
        return b;
    }

    static String hex(byte[] b) {
        StringBuilder text = new StringBuilder();
        for (byte x : b) text.append(String.format("%02x", x));
        return text.toString();
    }

    static String answer(String[] w) throws Session.Violation {
        switch (w[0]) {
            case "key":
                byte[] own = X25519.publicKey(bytes(w[1]));
                return Session.base64url(own) + " " + hex(Session.sessionKey(bytes(w[1]), own, bytes(w[2])));
            case "open": return Session.openLine(bytes(w[1]), w[2]).trim();
            case "resume":
                return Session.resumeLine(bytes(w[1]), w[2], Long.parseUnsignedLong(w[3]), Long.parseUnsignedLong(w[4]),
                        Long.parseUnsignedLong(w[5])).trim();
            default:
        }
        Session s = new Session(bytes(new String(new char[32]).replace("\0", "01")));
        StringBuilder reads = new StringBuilder();
        byte[] buffer = new byte[4096];
        for (String step : Arrays.copyOfRange(w, 2, w.length)) {
            byte[] value = bytes(step.substring(step.indexOf(':') + 1).equals(step) ? "" : step.substring(step.indexOf(':') + 1));
            if (step.startsWith("receive")) {
                for (int i = 0; i < value.length; i++) s.input(value, i, 1);
                if (s.key != null) s.key = bytes(w[1]);
            } else if (step.startsWith("write")) {
                s.send(value, 0, value.length);
                s.output(0);
            } else if (step.equals("finish")) {
                s.finished = true;
                s.output(0);
            } else {
                s.reattach();
            }
            reads.append(hex(Arrays.copyOf(buffer, s.take(buffer, 0, buffer.length, 0))));
        }
        String line = s.reattach().trim();
        return line + " " + hex(s.output(0)) + " " + reads;
    }

    static SSLSocketFactory trusting(String file) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (FileInputStream in = new FileInputStream(file)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(in));
        }
        TrustManagerFactory managers = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        managers.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, managers.getTrustManagers(), null);
        return context.getSocketFactory();
    }

    static String run(String[] args) throws Exception {
        String[] lines = args[2].split(",");
        Dialer d = new Dialer(args[1].split(","));
        d.plain = args[0].equals("talk");
        d.timeout = Integer.parseInt(args[3]);
        d.hold = 10000;
        d.newLine = e -> lines.length > 1 ? lines[1] : null;
        if (System.getenv("CA") != null) d.tls = trusting(System.getenv("CA"));
        boolean again = args[0].equals("again"), stuck = Arrays.asList("told", "silent", "leave").contains(args[0]);
        boolean bulk = again || stuck || args[0].equals("bulk");
        if (stuck) d.silence = d.patience = args[0].equals("silent") ? 500 : 60000;
        Tunnel[] opened = new Tunnel[1];
        AtomicInteger backs = new AtomicInteger();
        d.onEvent = (event, why) -> {
            if (event == Dialer.Event.BACK) backs.incrementAndGet();
            if (!again || event == Dialer.Event.ENDED || backs.get() > 20) return;
            try {
                opened[0].reconnect();
            } catch (IOException e) {
                // It is over.
            }
        };
        if (stuck) d.timeout = 60000; // dialling is not what is tested
        Tunnel t = opened[0] = d.dial(lines[0]);
        d.timeout = Integer.parseInt(args[3]);
        if (again) {
            t.reconnect();
            Thread often = new Thread(() -> {
                try {
                    for (int i = 0; i < 50; i++) {
                        t.reconnect();
                        Thread.sleep(1);
                    }
                } catch (Exception e) {
                    // It is over.
                }
            });
            often.setDaemon(true);
            often.start();
        }
        byte[] want = args[4].getBytes("UTF-8");
        if (bulk) {
            want = new byte[Integer.parseInt(args[4])];
            for (int i = 0; i < want.length; i++) want[i] = (byte) (i * 7 + i / 251);
        }
        byte[] all = want;
        AtomicInteger written = new AtomicInteger();
        ByteArrayOutputStream got = new ByteArrayOutputStream();
        Thread writing = new Thread(() -> {
            try {
                for (int i = 0; i < all.length; i += 4096) {
                    t.write(all, i, Math.min(4096, all.length - i));
                    written.addAndGet(Math.min(4096, all.length - i));
                    while (bulk && !stuck && got.size() < i) Thread.sleep(1);
                }
                t.closeWrite();
            } catch (Exception e) {
                // The reader sees it too.
            }
        });
        writing.setDaemon(true);
        writing.start();
        if (stuck && !args[0].equals("silent")) {
            for (int last = -1, rests = 0; rests < 100; last = written.get()) {
                rests = written.get() == last ? rests + 1 : 0;
                Thread.sleep(10);
            }
            if (written.get() == all.length) return "not stuck";
        }
        if (args[0].equals("told")) t.reconnect();
        if (args[0].equals("leave")) {
            long began = System.nanoTime();
            t.close();
            long took = (System.nanoTime() - began) / 1000000;
            return took < 1000 ? "closed in time" : "closed after " + took + " ms";
        }
        byte[] buffer = new byte[4096];
        for (int n; (n = t.read(buffer)) > 0; ) got.write(buffer, 0, n);
        writing.join();
        t.close();
        if (!bulk) return "ok " + (t.isResumable() ? "resumable " : "plain ") + got.toString("UTF-8");
        return Arrays.equals(got.toByteArray(), want) ? "ok " + want.length + (t.resumes() > 0 ? " resumed" : " not resumed") : "other bytes";
    }

    public static void main(String[] args) throws Exception {
        if (args[0].equals("vectors")) {
            BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
            for (String line; (line = in.readLine()) != null; ) {
                try {
                    System.out.println(answer(line.split(" ")));
                } catch (Session.Violation e) {
                    System.out.println("refused");
                }
            }
            return;
        }
        try {
            System.out.println(run(args));
        } catch (GatewayException e) {
            System.out.println("error " + e.status + " " + e.advice.name().toLowerCase().replace('_', ' '));
        }
        System.exit(0);
    }
}
